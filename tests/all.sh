#!/bin/sh
# all.sh LANE [beside LANE]... [then LANE], a LANE being NAME COMMAND [-- NAME COMMAND]...: run each
# suite, show what it prints, add up the counts. Suites of a lane run one after another, lanes side by
# side, and what comes after `then` when all before it are through.
#
# A suite's last line of the form "N passed, N failed[, N skipped]" is what it counted; a suite that
# dies without one counts as one failure. Ends in that one line for the whole, alone on its line.
# Beside another lane a suite's lines are shown together, when it is through.
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
start=$(date +%s)
lanes=0
: >"$work/counts"

suite() {
    log=$work/$lanes
    begin=$(date +%s)
    rc=0
    if [ "$alone" ]; then
        printf '== %s\n' "$1"
        # The status of the suite, not of tee, without bash's pipefail.
        { sh -c "$2" 2>&1; echo $? >"$log.rc"; } | tee "$log"
        rc=$(cat "$log.rc")
    else
        printf '.. %s\n' "$1"
        sh -c "$2" >"$log" 2>&1 || rc=$?
    fi
    p=0 f=0 s=0
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -n 1)
    if [ -n "$line" ]; then
        eval "$(echo "$line" | sed -E 's/^([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$/p=\1 f=\2 s=\4/')"
        s=${s:-0}
    fi
    why=
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1 why="ended with status $rc"
    elif [ "$rc" -eq 0 ] && [ $((p + f + s)) -eq 0 ]; then
        f=1 why='counted nothing'
    fi
    {
        flock 9
        [ "$alone" ] || { printf '== %s\n' "$1" && cat "$log"; }
        [ -z "$why" ] || printf '  FAIL %s %s\n' "$1" "$why"
        printf -- '-- %s: %d passed, %d failed, %d skipped in %d s\n' "$1" "$p" "$f" "$s" $(($(date +%s) - begin))
        echo "$p $f $s" >>"$work/counts"
    } 9>>"$work/lock"
}

lane() {
    while [ $# -gt 0 ]; do
        case $1 in
        beside | 'then') return ;;
        --) shift ;;
        esac
        [ $# -gt 0 ] || return
        suite "$1" "$2"
        shift 2
    done
}

alone=1 suites=1
for word; do
    case $word in
    beside) alone='' suites=$((suites + 1)) ;;
    -- | 'then') suites=$((suites + 1)) ;;
    esac
done
[ "$word" != -- ] || suites=$((suites - 1)) # nothing comes after it
while [ $# -gt 0 ]; do
    lanes=$((lanes + 1))
    lane "$@" &
    while [ $# -gt 0 ] && [ "$1" != beside ] && [ "$1" != 'then' ]; do shift; done
    if [ "${1-}" = 'then' ]; then
        wait
        alone=1
    fi
    [ $# -eq 0 ] || shift
done
wait
passed=0 failed=0 skipped=0
while read -r p f s; do
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s)) suites=$((suites - 1))
done <"$work/counts"
if [ "$suites" -ne 0 ]; then
    printf '  FAIL %d suites did not come to their end\n' "$suites"
    failed=$((failed + suites))
fi
printf -- '-- all suites in %d s\n' $(($(date +%s) - start))
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
