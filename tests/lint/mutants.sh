#!/bin/sh
# Each bug of tests/mutants/list.sh still finds the line it is planted in: a run of them takes hours,
# and what moved to another file should be known before.
bad=0
mutant() { # NAME FILE SED ...
    if [ ! -f "$2" ]; then
        echo "mutants.sh: $1: there is no $2"
        bad=1
    elif sed "$3" "$2" | cmp -s - "$2"; then
        echo "mutants.sh: $1: its edit finds no place in $2"
        bad=1
    fi
}
. tests/mutants/list.sh
exit "$bad"
