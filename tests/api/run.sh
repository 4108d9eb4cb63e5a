#!/bin/sh
# run.sh BUILD: the API tests over the real server in BUILD/bin and a PostgreSQL of their own.
exec tests/support/pg_temp.sh python3 -B tests/api/test_api.py "$1"
