#!/bin/sh
# Every code that an error of the server may carry is in docs/API.md, and none is there that it does not send.
words='[A-Z]{2,}(_[A-Z]+)*'
sent=$(mktemp) told=$(mktemp)
trap 'rm -f "$sent" "$told"' EXIT
# Codes stand beside a status (409, "NAME"), before a hint in a table, or at the end of a choice.
# CLIENT_GONE is for the log: nobody is there to read it.
grep -rhoE "([45][0-9]{2}, *\"$words\"| : \"$words\",|\{\"$words\", *\"[a-z])" server --include='*.c' | grep -oE "\"$words\"" |
    tr -d '"' | grep -vx CLIENT_GONE | sort -u >"$sent"
# In the manual: after a status in a row's answer or in the lists of codes; methods are no codes.
grep -oE "\`$words\`" docs/API.md | tr -d '`' | grep -vxE 'GET|HEAD|POST|DELETE' | sort -u >"$told"
missing=$(comm -23 "$sent" "$told") extra=$(comm -13 "$sent" "$told")
[ -z "$missing" ] || echo "codes.sh: not in docs/API.md: $missing"
[ -z "$extra" ] || echo "codes.sh: docs/API.md has, and the server never sends: $extra"
[ -z "$missing$extra" ]
