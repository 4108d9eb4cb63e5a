#!/bin/sh
# gpu_tools.sh TEST: a test program under compute-sanitizer, once for accesses and once for races.
# Without the tool, which some CUDA installations lack, both are skipped.
passed=0 failed=0
export PHOTON_REQUIRE_CUDA=1 PHOTON_QUICK=1
tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -z "$tool" ]; then
    echo 'skipped: no compute-sanitizer'
    echo '0 passed, 0 failed, 2 skipped'
    exit 0
fi
for check in memcheck racecheck; do
    if "$tool" --tool "$check" --error-exitcode 9 "$1"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf '  FAIL %s\n' "$check"
    fi
done
printf '%d passed, %d failed, 0 skipped\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
