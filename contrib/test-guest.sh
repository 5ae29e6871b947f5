#!/bin/sh
# Judges that nobody here wrote: boots Debian's kernel in QEMU, two at a time. usb-storage, st, mt,
# tar and dd use the emulated drive, attached over USB/IP, and so does tapefs, as root and as
# somebody else; and tapefs uses a drive made by QEMU and tgt. A few minutes; needs no KVM. Installs
# what it needs first.
#
#   contrib/test-guest.sh [PYTEST-ARGUMENT...]
#
# Exit codes: 2 to 7 as in contrib/prepare.sh (it cannot run here), 15 tests.
set -eu

cd "$(dirname "$0")/.."
contrib/prepare.sh guest
.venv/bin/pytest -m guest -n 2 --dist worksteal --durations 0 tests/guest "$@" || {
    printf '\ntest-guest: failed; what the guest said is above\n' >&2
    exit 15
}
printf '\ntest-guest: everything passed\n'
