#!/bin/sh
# Linux's own drivers as the judge: boots Debian's kernel in QEMU, attaches the emulated drive to it
# over USB/IP, and lets usb-storage, st, mt, tar and dd, and tapefs itself, use it. A few minutes;
# needs no KVM. Installs what it needs first.
#
#   contrib/test-guest.sh [PYTEST-ARGUMENT...]
#
# Exit codes: 2 to 7 as in contrib/prepare.sh (it cannot run here), 3 and 4 also for the packages
# below, 15 tests.
set -eu

cd "$(dirname "$0")/.."
packages="linux-image-amd64 qemu-system-x86 busybox-static mt-st sg3-utils rsync tar"

contrib/prepare.sh test
missing=
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || {
        echo "test-guest: as root, run 'apt-get install$missing', then run this again" >&2
        exit 3
    }
    echo "test-guest: installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 - a list of words
    { apt-get update && apt-get install -y --no-install-recommends $missing; } >/dev/null || {
        echo "test-guest: these Debian packages cannot be installed:$missing" >&2
        exit 4
    }
fi
.venv/bin/pytest -m guest tests/guest "$@" || {
    printf '\ntest-guest: failed; the last lines of the guest are above\n' >&2
    exit 15
}
printf '\ntest-guest: everything passed\n'
