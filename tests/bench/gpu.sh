#!/bin/sh
# gpu.sh BENCH_ENGINE: ops and whole steps on the GPU; counts as one test that they run at all.
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader || true
fi
if "$1" --device cuda --seconds 5; then
    echo '1 passed, 0 failed, 0 skipped'
else
    echo '0 passed, 1 failed, 0 skipped'
    exit 1
fi
