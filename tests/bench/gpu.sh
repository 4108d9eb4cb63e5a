#!/bin/sh
# gpu.sh BENCH_ENGINE: ops and whole steps on the GPU, then steps in turns with PyTorch's; counts as
# tests that they run at all. On Hopper the attention that is asked for by name is timed beside the
# other, alone and in steps. SIZES names which models (125m-2k and 1b-2k; 3b-2k and 7b-2k take
# minutes each), ROUNDS how often the two take turns (1). PyTorch
# first looks for its fastest variant, which takes minutes a size; TORCH names one instead, say
# '--attention flex --mode default --weights autocast'. Each program is ended after BENCH_LIMIT_S (1800).
passed=0 failed=0 skipped=0
count() { if timeout -k 10 "${BENCH_LIMIT_S:-1800}" "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi; }
hopper=
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader || true
    hopper=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n 1p)
fi
sizes=
for s in ${SIZES:-125m-2k 1b-2k}; do sizes="$sizes --size $s"; done
# Algorithms are timed once, here, and noted for all that follows.
choices=$(mktemp)
trap 'rm -f "$choices"' EXIT
export PHOTON_CUDA_ALGOS="$choices"
# shellcheck disable=SC2086 # a list of options
count "$1" --device cuda --seconds 5 $sizes
if [ "$hopper" = 9.0 ]; then
    for attention in mma wgmma-untried; do
        echo "attention by $attention"
        # shellcheck disable=SC2086
        count env PHOTON_CUDA_ATTN="$attention" "$1" --device cuda --only attn $sizes
    done
    # shellcheck disable=SC2086
    count env PHOTON_CUDA_ATTN=wgmma-untried "$1" --device cuda --seconds 5 --only steps $sizes
else
    echo 'skipped: attention by wgmma, no nvidia-smi that tells compute capability 9.0'
    skipped=$((skipped + 1))
fi
here=$(dirname "$0")
if python3 -c 'import torch' 2>/dev/null; then
    # shellcheck disable=SC2086
    count python3 -B "$here/torch_gpu.py" --ours "$1" --seconds 3 --rounds "${ROUNDS:-1}" $TORCH $sizes
else
    echo 'skipped: PyTorch beside ours, python3 has no torch'
    skipped=$((skipped + 1))
fi
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ]
