#!/bin/sh
# Installs the Debian packages that are missing: what the build and the demo need; --test adds what
# the tests need, --dev what `make check` needs besides.
# Looks for the thing itself, not for the package, so a tool that came another way is left alone.
missing=''
need() { # need PACKAGE THING: a command, a pkg-config module (name.pc), or a file (with wildcards)
    case $2 in
    */*) for f in $2; do [ ! -e "$f" ] || return 0; done ;;
    *.pc) ! pkg-config --exists "${2%.pc}" 2>/dev/null || return 0 ;;
    *) ! command -v "$2" >/dev/null || return 0 ;;
    esac
    missing="$missing $1"
}
need gcc gcc
need make make
need libc6-dev '/usr/include/stdio.h'
need pkg-config pkg-config
need libpq-dev libpq.pc
need libmicrohttpd-dev libmicrohttpd.pc
need libcjson-dev libcjson.pc
need libcurl4-openssl-dev libcurl.pc
need libssl-dev libcrypto.pc
need libgnutls28-dev gnutls.pc
need zlib1g-dev zlib.pc
need libpcre2-dev libpcre2-8.pc
need libutf8proc-dev libutf8proc.pc
need libdnnl-dev '/usr/include/dnnl.h'
need postgresql '/usr/lib/postgresql/*/bin/initdb'
need nodejs node
need npm npm
if [ "${1-}" = --test ] || [ "${1-}" = --dev ]; then
    need g++ g++ # the CUDA kernels, emulated
    need chromium chromium
    need fonts-dejavu-core '/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf'
    need python3 python3
    need python3-jsonschema '/usr/lib/python3/dist-packages/jsonschema'
    need procps ps
    need rsync rsync
fi
if [ "${1-}" = --dev ]; then
    for p in clang clang-format cppcheck pmccabe shellcheck; do need "$p" "$p"; done
fi
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || { echo "deps.sh: not a Debian system; needed:$missing" >&2; exit 1; }
as_root=''
if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
    command -v sudo >/dev/null || {
        echo "deps.sh: packages are missing and there is no sudo; as root, run: apt-get install$missing" >&2
        exit 1
    }
fi
echo "deps.sh: installing$missing"
# shellcheck disable=SC2086 # lists of words
$as_root apt-get update -q && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
