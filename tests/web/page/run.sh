#!/bin/sh
# run.sh [BUILD [FILE]...]: the dashboard in Debian's Chromium, or those files of its tests, one browser at a time;
# BUILD/bin is the real server's place.
# Without Chromium, or without npm to fetch what drives it, each test is skipped and says why.
cd "$(dirname "$0")/../../.." || exit 1
modules=tests/web/node_modules
# npm writes that file; an older one means that the lockfile has changed since.
if [ -z "$(find $modules/.package-lock.json -newer tests/web/package-lock.json 2>/dev/null)" ]; then
    npm ci --prefix tests/web --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null 2>&1 &&
        touch $modules/.package-lock.json
fi
PHOTON_BUILD=${1-}
export PHOTON_BUILD
if [ $# -gt 1 ]; then shift; else set -- tests/web/page/*.test.mjs; fi
exec tests/web/run.sh --test-concurrency=1 "$@"
