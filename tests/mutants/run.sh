#!/bin/sh
# run.sh [WORD]: does the test suite notice? Plants the bugs of tests/mutants/list.sh, one at a time, in a
# copy of the tree, and runs the test that each names: it must pass before, and fail with the bug.
# WORD takes the bugs alone whose name or file holds it. With BUILD the objects there are a head start.
set -u
word=${1-}
build=${BUILD:-build/release}
tree=$(mktemp -d) || exit 1
trap 'rm -rf "$tree"' EXIT
trap 'exit 1' INT TERM
git ls-files -z | xargs -0 cp -a --parents -t "$tree"
if [ -d "$build" ]; then
    mkdir -p "$tree/build"
    cp -a "$build" "$tree/build/release"
    [ ! -d build/fault ] || cp -a build/fault "$tree/build/fault"
fi
cd "$tree" || exit 1

killed=0 survived=0 sound=' '
log=$tree/mutant.log

# What a test needs: its own program, or the server.
make_for() {
    case $1 in
    tests/api) # with the clients, whose side of TLS is tried there
        make -s "-j$(nproc)" COMMIT=mutant build/release/bin/photon-server build/release/bin/photon-client \
            build/release/bin/photon build/release/tests/fault/shim.so >"$log" 2>&1
        return
        ;;
    tests/schema) return 0 ;;
    tests/rig)
        make -s "-j$(nproc)" COMMIT=mutant VARIANT=fault build/fault/bin/photon-server build/fault/bin/photon-client \
            >"$log" 2>&1 &&
            make -s "-j$(nproc)" COMMIT=mutant build/release/bin/photon build/release/tests/fault/shim.so >"$log" 2>&1
        return
        ;;
    tests/fault/*.py)
        make -s "-j$(nproc)" COMMIT=mutant build/release/bin/photon-server build/release/bin/photon-client \
            build/release/bin/photon build/release/tests/fault/proxy build/release/tests/fault/send_update >"$log" 2>&1
        return
        ;;
    *) what=build/release/$1 ;;
    esac
    make -s "-j$(nproc)" COMMIT=mutant "$what" >"$log" 2>&1
}

run_test() {
    # shellcheck disable=SC2086 # the words of a mode of the rig
    case $1 in
    tests/api) timeout 180 tests/api/run.sh build/release "$2" ;;
    tests/rig) timeout 300 python3 -B tests/fault/rig.py $2 ;;
    tests/schema) timeout 60 tests/support/pg_temp.sh tests/api/schema.sh ;;
    tests/fault/hostile.py) timeout 300 tests/support/pg_temp.sh python3 -B "$1" build/release $2 ;;
    tests/fault/*.py) timeout 300 python3 -B "$1" build/release $2 ;;
    tests/store/*) timeout 200 tests/store/run.sh "build/release/$1" ;;
    *) OMP_WAIT_POLICY=passive timeout 120 "build/release/$1" ;;
    esac >"$log" 2>&1
}

fail() {
    survived=$((survived + 1))
    printf '  FAIL %s: %s\n' "$1" "$2"
    tail -n 12 "$log" | sed 's/^/       /'
}

# mutant NAME FILE SED TEST [WHICH]: SED edits FILE; TEST is a test program, tests/api, tests/schema,
# tests/rig or a harness of tests/fault, with the API test or the words of the last two.
mutant() {
    name=$1 file=$2 edit=$3 test=$4 which=${5-}
    case "$name $file" in *"$word"*) ;; *) return ;; esac
    : >"$log"
    case $sound in
    *" $test:$which "*) ;;
    *) # A test that fails anyway would see every bug.
        if ! make_for "$test" || ! run_test "$test" "$which"; then
            fail "$name" "$test $which fails without it"
            return
        fi
        sound="$sound$test:$which "
        ;;
    esac
    cp "$file" "$tree/before"
    sed -i "$edit" "$file"
    if cmp -s "$file" "$tree/before"; then
        fail "$name" "the edit no longer finds its place in $file"
    elif ! make_for "$test"; then
        fail "$name" 'does not build'
    elif run_test "$test" "$which"; then
        fail "$name" "$test $which saw nothing"
    else
        killed=$((killed + 1))
        printf '  ok   %s: %s %s\n' "$name" "$test" "$which"
        sed -n 's/^world.Broken: /       /p' "$log" | tail -n 1
    fi
    cp "$tree/before" "$file"
}

. tests/mutants/list.sh
printf '%d passed, %d failed\n' "$killed" "$survived"
[ "$survived" -eq 0 ] && [ "$killed" -gt 0 ]
