#!/bin/sh
# run.sh SECONDS TARGET...: each fuzz target for that long, from its seeds (tests/fuzz/seeds/NAME) on.
seconds=$1
shift
for f in "$@"; do
    name=${f##*/}
    corpus=build/corpus/$name
    mkdir -p "$corpus" "tests/fuzz/seeds/$name"
    printf '  FUZZ %s for %s s\n' "$name" "$seconds"
    if ! "$f" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        "$corpus" "tests/fuzz/seeds/$name" >"$corpus.log" 2>&1; then
        tail -n 40 "$corpus.log"
        exit 1
    fi
    sed -n 's/^stat::number_of_executed_units: */       runs: /p' "$corpus.log"
done
