#!/bin/sh
# Build a Debian package of tapefs in DIRECTORY (default: dist): with everything that is not Debian's
# in /usr/lib/tapefs, and what README.md has one install by hand at the places where it belongs.
#
#   contrib/deb.sh [DIRECTORY]
#
# Exit codes: 2 to 7 as in contrib/prepare.sh (it cannot run here), 16 the package cannot be built.
set -eu

cd "$(dirname "$0")/.."
into=$(realpath "${1:-dist}")
contrib/prepare.sh run

staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
root=$staging/root lib=$staging/root/usr/lib/tapefs

# Debian's Python, whichever else comes first in PATH: the package depends on it.
python=/usr/bin/python3
mkdir -p "$root/usr/lib" "$root/DEBIAN"
chmod 755 "$root"
$python -m venv "$lib"
"$lib/bin/pip" install -q --disable-pip-version-check . || exit 16
version=$("$lib/bin/python" -c 'import tapefs; print(tapefs.__version__)')
"$lib/bin/pip" uninstall -q -y --disable-pip-version-check pip setuptools
find "$lib" -name __pycache__ -prune -exec rm -rf {} +
grep -rlI "$lib" "$lib" | xargs sed -i "s#$lib#/usr/lib/tapefs#g"

mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/share/bash-completion/completions" \
    "$root/usr/share/zsh/vendor-completions" "$root/usr/share/doc/tapefs" "$root/usr/share/man"
ln -s ../lib/tapefs/bin/tapefs "$root/usr/bin/tapefs"
for helper in mount umount; do
    ln -s "../lib/tapefs/bin/$helper.fuse.tapefs" "$root/usr/sbin/$helper.fuse.tapefs"
done
mv "$lib/share/man/man1" "$root/usr/share/man/"
gzip -9n "$root"/usr/share/man/man1/*
mv "$lib/share/bash-completion/completions/tapefs" "$root/usr/share/bash-completion/completions/"
mv "$lib/share/zsh/site-functions/_tapefs" "$root/usr/share/zsh/vendor-completions/"
cp LICENSE "$root/usr/share/doc/tapefs/copyright"
cp -r README.md CHANGELOG.md docs "$root/usr/share/doc/tapefs/"

install -D -m 644 -t "$root/lib/udev/rules.d" contrib/udev/*.rules
install -D -m 644 -t "$root/lib/systemd/system" contrib/systemd/tapefs@.service
for target in poweroff reboot; do
    install -D -m 644 -t "$root/lib/systemd/system/$target.target.d" \
        contrib/systemd/10-wait-for-tape.conf
done
install -D -m 644 -t "$root/usr/share/tapefs/systemd" contrib/systemd/10-user.conf \
    contrib/systemd/61-tapefs-mount.rules
rm -r "$lib/share"
mkdir -p "$root/etc/tapefs"

minor=$($python -c 'import sys; print(sys.version_info.minor)')
cat >"$root/DEBIAN/control" <<END
Package: tapefs
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: the tapefs authors <tapefs@localhost>
Section: utils
Priority: optional
Depends: python3 (>= 3.$minor), python3 (<< 3.$((minor + 1))), fuse3, libfuse3-3, libusb-1.0-0
Recommends: mt-st, tar
Description: $(sed -n 's/^description = "\(.*\)"$/\1/p' pyproject.toml)
 Copy into a mount; unmount; in twenty years any Unix reads the cartridge with mt and tar. For
 people with one drive: AIT, DAT, Travan, SLR, DLT and LTO drives on USB, without a list of
 blessed ones.
END
install -m 755 contrib/deb/* "$root/DEBIAN/"
mkdir -p "$into"
dpkg-deb --root-owner-group --build -Zgzip "$root" "$into" || exit 16
