#!/bin/sh
# run.sh BUILD NAME: the end-to-end tests of tests/e2e/test_NAME.py over the programs in BUILD/bin.
exec python3 -B "tests/e2e/test_$2.py" "$1"
