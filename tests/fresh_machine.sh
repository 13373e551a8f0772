#!/bin/sh
# The README's commands on a machine that has only Python: makes a minimal Debian by mmdebstrap from this machine's own
# apt sources and runs them there as a user without rights, in a folder whose name has blanks and Chinese letters.
#
#   sh tests/fresh_machine.sh            quickstart.sh (STEPS=20 for a short one)
#   sh tests/fresh_machine.sh tests      run_tests.sh too; further words go to pytest
#
# The system lacks libgomp.so.1 at first: quickstart.sh has to name the command that brings it before any download, and
# that command is what is run then. Needs root, mmdebstrap and the network. SUITE names another release of which there is
# a file of apt sources, Ubuntu's too (SUITE=noble). Downloads of pip are kept in PIP_CACHE (default
# /var/tmp/fresh_machine_pip).
set -eu
cd "$(dirname "$0")/.."
if [ "${1:-}" != --inside ]; then
    exec unshare --mount --pid --fork --kill-child sh "$0" --inside "$@"
fi
shift

SUITE=${SUITE:-bookworm}
PIP_CACHE=${PIP_CACHE:-/var/tmp/fresh_machine_pip}
root=$(mktemp -d)
trap 'umount -R "$root" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT
mount -t tmpfs -o size=8g,mode=755 fresh_machine "$root"

echo "== minimal $SUITE"
# Files of sources for this release alone; those of other vendors have keys that are not here.
sources=$(grep -lsE "(^Suites:|^deb )(.* )?$SUITE( |\$)" /etc/apt/sources.list /etc/apt/sources.list.d/* || true)
[ -n "$sources" ] || {
    echo "error: no apt sources of $SUITE on this machine" >&2
    exit 2
}
# shellcheck disable=SC2086
cat $sources | mmdebstrap --quiet --variant=minbase --include=apt,python3,python3-venv,ca-certificates "$SUITE" "$root" -
mkdir -p "$PIP_CACHE" "$root/var/cache/pip"
chown 1000:1000 "$PIP_CACHE"
mount --bind "$PIP_CACHE" "$root/var/cache/pip"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt"
home="/home/someone/稳定 扩散 of mine"
mkdir -p "$root$home"
git archive HEAD | tar -x -C "$root$home"
chown -R 1000:1000 "$root/home/someone"

run() {
    chroot --userspec=1000:1000 "$root" env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/someone PIP_BAR=off \
        PIP_CACHE_DIR=/var/cache/pip PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} STEPS="${STEPS:-600}" \
        sh -c 'cd "$1" && shift && exec sh "$@"' run "$home" "$@"
}

echo "== quickstart.sh without libgomp.so.1"
status=0
run quickstart.sh >"$root/tmp/first" 2>&1 || status=$?
cat "$root/tmp/first"
# shellcheck disable=SC2016
advice=$(head -n 1 "$root/tmp/first" | sed -n 's/^error: .*`\(apt-get install [^`]*\)`.*/\1/p')
[ "$status" = 2 ] && [ -n "$advice" ] || {
    echo "error: expected exit code 2 and the library's package in the first line; exit code $status" >&2
    exit 1
}
echo "== $advice"
chroot "$root" sh -c "apt-get -q update && DEBIAN_FRONTEND=noninteractive $advice -y" >/dev/null

echo "== quickstart.sh"
run quickstart.sh
du -sm "$root$home/.venv"
if [ "${1:-}" = tests ]; then
    shift
    echo "== run_tests.sh"
    run run_tests.sh "$@"
fi
echo "== passed on minimal $SUITE"
