#!/bin/sh
# gpu_tools.sh TEST: a test program under compute-sanitizer, once for accesses and once for races, Hopper's
# attention first and by itself; PARTS=hopper or all takes one of them. Each is ended after TEST_LIMIT_S. Without the tool, which some CUDA
# installations lack, all are skipped. (Calls that fail are no errors of memcheck's here: a test asks for
# more memory than there is. A tool may not know all of Hopper: what it says of the products there is to be
# held against the parity tests.)
passed=0 failed=0
export PHOTON_REQUIRE_CUDA=1 PHOTON_QUICK=1
tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -z "$tool" ]; then
    echo 'skipped: no compute-sanitizer'
    echo '0 passed, 0 failed, 4 skipped'
    exit 0
fi
for part in ${PARTS:-hopper all}; do
    for check in 'memcheck --report-api-errors no' racecheck; do
        # shellcheck disable=SC2086 # a tool and its option
        if timeout -k 10 "${TEST_LIMIT_S:-300}" "$tool" --tool $check --error-exitcode 9 "$1" "$part"; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            printf '  FAIL %s of %s\n' "$check" "$part"
        fi
    done
done
printf '%d passed, %d failed, 0 skipped\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
