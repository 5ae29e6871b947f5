#!/bin/sh
# Install what tapefs needs on a Debian machine: Debian packages, and Python packages in ./.venv.
# contrib/demo.sh and contrib/test*.sh call it; running it again costs nothing.
#
#   contrib/prepare.sh run     what a mount needs
#   contrib/prepare.sh test    what the tests need as well
#   contrib/prepare.sh guest   what the tests in QEMU need as well: about 1 GB
#
# Exit codes: 2 wrong usage, 3 packages are missing and only root may install them, 4 packages
# cannot be installed, 5 Python is too old, 6 Python packages cannot be installed, 7 no FUSE.
set -eu

cd "$(dirname "$0")/.."
kind=${1:-}
packages="fuse3 libfuse3-dev pkg-config libusb-1.0-0 gcc libc6-dev python3-dev python3-venv"
packages="$packages rsync attr acl tar"
for_tests="libarchive-tools libcap2-bin psmisc systemd groff-base man-db zsh git make unzip zip stress-ng fio bonnie++ samba smbclient hashdeep"
for_tests="$for_tests chromium poppler-utils zbar-tools fonts-dejavu-core"
for_guests="linux-image-amd64 qemu-system-x86 qemu-block-extra tgt busybox-static udev mt-st sg3-utils nfs-kernel-server"
case $kind in
    run) extra= ;;
    test) extra="[test]" packages="$packages $for_tests" ;;
    guest) kind=test extra="[test]" packages="$packages $for_tests $for_guests" ;;
    *) echo "usage: contrib/prepare.sh run|test|guest" >&2; exit 2 ;;
esac

fail() { # exit code, sentence
    echo "prepare: $2" >&2
    exit "$1"
}

logged() { # run a command; show what it printed only if it fails
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    tail -n 25 "$log" >&2
    rm -f "$log"
    return 1
}

debian_packages() {
    if ! command -v dpkg-query >/dev/null; then
        echo "prepare: this is no Debian; taken for granted: $packages" >&2
        return 0
    fi
    missing=
    for package in $packages; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || fail 3 "as root, run 'apt-get install$missing', then run this again"
    echo "prepare: installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    logged apt-get update ||
        fail 4 "the lists of Debian packages cannot be fetched; connect the network and try again"
    # shellcheck disable=SC2086 - a list of words
    logged apt-get install -y --no-install-recommends $missing ||
        fail 4 "these Debian packages cannot be installed:$missing; the lines above say why"
}

python_packages() {
    command -v python3 >/dev/null || fail 5 "there is no python3; install Python 3.11 or newer"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail 5 "$(python3 --version) is too old; make python3 mean Python 3.11 or newer"
    # A virtual environment holds absolute paths: one that was moved with its directory is no use.
    home=.venv/.tapefs-home
    if [ -e "$home" ] && [ "$(cat "$home")" != "$PWD" ]; then
        rm -rf .venv
    fi
    if ! [ -x .venv/bin/python ]; then
        logged python3 -m venv .venv ||
            fail 6 "no virtual environment can be made in $PWD/.venv; the lines above say why"
    fi
    # The tests' packages include what a mount needs.
    wanted=$( (cat pyproject.toml contrib/prepare.sh; .venv/bin/python --version) | sha256sum)
    for stamp in ".venv/.tapefs-ready-$kind" .venv/.tapefs-ready-test; do
        if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
            return 0
        fi
    done
    echo "prepare: installing Python packages into ./.venv (once; a minute or two)"
    logged .venv/bin/python -m pip install --disable-pip-version-check -e ".$extra" ||
        fail 6 "the Python packages cannot be installed; is the network there? Then try again"
    printf '%s\n' "$PWD" >"$home"
    printf '%s\n' "$wanted" >".venv/.tapefs-ready-$kind"
}

fuse_device() {
    if ! [ -e /dev/fuse ] && [ "$(id -u)" = 0 ]; then
        modprobe fuse 2>/dev/null || true
    fi
    [ -e /dev/fuse ] ||
        fail 7 "/dev/fuse is missing: run 'modprobe fuse', or start the container with
'--device /dev/fuse --cap-add SYS_ADMIN'"
    (: <>/dev/fuse) 2>/dev/null ||
        fail 7 "/dev/fuse may not be opened by $(id -un); run this as root"
}

debian_packages
fuse_device
python_packages
