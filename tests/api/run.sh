#!/bin/sh
# run.sh BUILD [MODULE[.TEST]]...: the API tests, or those named, over the real server in BUILD/bin and a PostgreSQL of their own.
exec tests/support/pg_temp.sh python3 -B tests/api/test_api.py "$@"
