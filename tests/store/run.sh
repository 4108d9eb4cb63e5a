#!/bin/sh
# run.sh PROGRAM...: tests of the store over a PostgreSQL of their own.
exec tests/support/pg_temp.sh tests/run.sh "$@"
