#!/bin/sh
# run.sh BUILD: our tokenizer against Hugging Face's; skipped where npm cannot fetch it.
here=$(dirname "$0")
skip() {
    printf 'skipped: tokenizer oracle: %s\n0 passed, 0 failed, 1 skipped\n' "$1"
    exit 0
}
command -v node >/dev/null || skip 'no node'
if [ ! -d "$here/node_modules/@huggingface/tokenizers" ]; then
    command -v npm >/dev/null || skip 'no npm'
    npm ci --prefix "$here" --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null 2>&1 ||
        skip 'npm cannot fetch @huggingface/tokenizers'
fi
PHOTON_BUILD=$1 exec "$here/../web/run.sh" "$here"/*.test.mjs
