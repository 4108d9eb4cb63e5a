#!/bin/sh
# all.sh NAME COMMAND [-- NAME COMMAND]...: run each suite, show what it prints, add up the counts.
#
# A suite's last line of the form "N passed, N failed[, N skipped]" is what it counted; a suite that
# dies without one counts as one failure. Ends in that one line for the whole, alone on its line.
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
start=$(date +%s)
while [ $# -gt 0 ]; do
    name=$1 command=$2
    shift 2
    [ "${1-}" != -- ] || shift
    printf '== %s\n' "$name"
    begin=$(date +%s)
    # The status of the suite, not of tee, without bash's pipefail.
    { sh -c "$command" 2>&1; echo "suite-exit $?" >"$log.rc"; } | tee "$log"
    rc=$(sed 's/suite-exit //' "$log.rc")
    rm -f "$log.rc"
    p=0 f=0 s=0
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -n 1)
    if [ -n "$line" ]; then
        eval "$(echo "$line" | sed -E 's/^([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$/p=\1 f=\2 s=\4/')"
        s=${s:-0}
    fi
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1
        printf '  FAIL %s ended with status %s\n' "$name" "$rc"
    fi
    if [ "$rc" -eq 0 ] && [ $((p + f + s)) -eq 0 ]; then
        f=1
        printf '  FAIL %s counted nothing\n' "$name"
    fi
    printf -- '-- %s: %d passed, %d failed, %d skipped in %d s\n' "$name" "$p" "$f" "$s" \
        $(($(date +%s) - begin))
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
printf -- '-- all suites in %d s\n' $(($(date +%s) - start))
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
