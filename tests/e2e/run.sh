#!/bin/sh
# run.sh BUILD: the end-to-end tests over the programs in BUILD/bin.
exec python3 -B tests/e2e/test_loop.py "$1"
