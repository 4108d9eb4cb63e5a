#!/bin/sh
# run.sh FILE...: node's own test runner, its counts as tests/all.sh reads them.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
node --test --test-reporter=tap "$@" >"$log" 2>&1
rc=$?
count() { sed -n "s/^# $1 //p" "$log" | tail -n 1; }
if [ "$rc" -ne 0 ]; then
    cat "$log"
else
    sed -n -e 's/^\( *\)ok [0-9]* - /\1  ok   /p' "$log"
fi
passed=$(count pass) failed=$(count fail) skipped=$(count skipped)
printf '%d passed, %d failed, %d skipped\n' "${passed:-0}" "${failed:-1}" "${skipped:-0}"
exit "$rc"
