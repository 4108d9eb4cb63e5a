#!/bin/sh
# Applies sql/ from empty to a throwaway PostgreSQL, then runs each tests/api/schema*.sql against it.
psql() { command psql -X -q -t -v ON_ERROR_STOP=1 "$@"; }

passed=0 failed=0
for f in sql/*.sql; do
    psql --single-transaction -f "$f" || exit 1
done
for f in tests/api/schema*.sql; do
    if psql -o /dev/null -f "$f"; then
        passed=$((passed + 1))
        printf '  ok   %s\n' "$f"
    else
        failed=$((failed + 1))
        printf '  FAIL %s\n' "$f"
    fi
done
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
