#!/bin/sh
# gpu.sh BENCH_ENGINE: ops and whole steps on the GPU; counts as one test that they run at all. On
# Hopper the attention that is asked for by name is timed beside the other, alone and in steps.
passed=0 failed=0
count() { if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi; }
hopper=
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader || true
    hopper=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n 1p)
fi
count "$1" --device cuda --seconds 5
if [ "$hopper" = 9.0 ]; then
    for attention in mma wgmma-untried; do
        echo "attention by $attention"
        count env PHOTON_CUDA_ATTN="$attention" "$1" --device cuda --only attn
    done
    count env PHOTON_CUDA_ATTN=wgmma-untried "$1" --device cuda --seconds 5 --only steps
else
    echo 'skipped: attention by wgmma, no compute capability 9.0'
fi
printf '%d passed, %d failed, 0 skipped\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
