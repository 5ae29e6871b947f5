#!/bin/bash
# The whole story of a tape, without any hardware: format, mount, fill, unmount; forget everything
# this host knows about it; mount it again from the tape alone; read it with nothing but GNU tar.
#
#   contrib/demo.sh [--keep] [TREE [MEGABYTES]]
#
# copies at most MEGABYTES (50) of TREE (/usr/share/doc). Works in a temporary directory, which is
# kept when something fails, or with --keep. Installs what it needs first.
# Exit codes: 0 everything was identical, 1 something was not, 2 to 7 as in contrib/prepare.sh,
# 130 interrupted.
set -euo pipefail

usage() {
    echo "usage: contrib/demo.sh [--keep] [TREE [MEGABYTES]]" >&2
    exit 2
}

keep=
if [ "${1:-}" = --keep ]; then
    keep=yes
    shift
fi
[ $# -le 2 ] || usage
tree=${1:-/usr/share/doc}
megabytes=${2:-50}
[[ $megabytes =~ ^[1-9][0-9]*$ ]] || usage
[ -d "$tree" ] || {
    echo "demo: $tree is no directory; name one to copy from" >&2
    exit 2
}
tree=$(cd "$tree" && pwd)

home=$(cd "$(dirname "$0")/.." && pwd)
"$home/contrib/prepare.sh" run
PATH=$home/.venv/bin:$PATH

work=$(mktemp -d "${TMPDIR:-/tmp}/tapefs-demo.XXXXXX")
cartridge=$work/demo.tap
mountpoint=$work/mnt
source=$work/source
export TAPEFS_STATE_DIR=$work/state TAPEFS_RUNTIME_DIR=$work/run
mkdir "$mountpoint" "$source"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }

run() { # show a command, then run it
    printf '  $ %s\n' "${*//$work/\$work}"
    "$@"
}

fail() {
    printf '\ndemo: %s\ndemo: everything is kept in %s\n' "$1" "$work" >&2
    exit 1
}

# shellcheck disable=SC2317 - called by a trap
leave() {
    code=$?
    trap - EXIT
    trap '' INT TERM
    if mountpoint -q "$mountpoint" 2>/dev/null; then
        timeout 120 tapefs umount "$mountpoint" >/dev/null 2>&1 ||
            fusermount3 -uz "$mountpoint" 2>/dev/null || umount -l "$mountpoint" 2>/dev/null || true
    fi
    # One that died is no mount point for mountpoint(1) any more.
    fusermount3 -uz "$mountpoint" 2>/dev/null || true
    if [ $code = 0 ] && [ -z "$keep" ] || [ $code -ge 128 ]; then
        rm -rf --one-file-system "$work"
    elif [ $code -ne 0 ] && [ $code -ne 1 ]; then
        printf '\ndemo: a command failed with exit code %s\n' $code >&2
        for log in "$work"/state/log/*; do
            [ -e "$log" ] && tail -n 20 "$log" >&2
        done
        printf 'demo: everything is kept in %s\n' "$work" >&2
        code=1
    fi
    exit $code
}
trap leave EXIT
trap 'echo; echo "demo: interrupted; cleaning up" >&2; exit 130' INT
trap 'exit 143' TERM

choose_files() { # names, each ended by NUL, of the first files of the tree that are small enough
    python3 - "$tree" "$megabytes" <<'PYTHON'
import os, stat, sys

tree, room_bytes = sys.argv[1], int(sys.argv[2]) * 1_000_000
for directory, below, names in os.walk(os.fsencode(tree)):
    below.sort()
    for name in sorted(names):
        path = os.path.join(directory, name)
        found = os.lstat(path)
        regular = stat.S_ISREG(found.st_mode)
        if not (regular and os.access(path, os.R_OK)) and not stat.S_ISLNK(found.st_mode):
            continue
        if regular and found.st_size > room_bytes:
            continue
        room_bytes -= found.st_size
        sys.stdout.buffer.write(os.path.relpath(path, os.fsencode(tree)) + b"\0")
PYTHON
}

make_odd_files() { # what archives like to get wrong
    local odd=$source/odd
    mkdir -p "$odd/empty directory"
    echo "one file" >"$odd/one name"
    ln "$odd/one name" "$odd/another name"
    ln -s "one name" "$odd/link"
    mkfifo "$odd/fifo"
    echo "grün" >"$odd/grün ☃"
    echo "Latin-1" >"$odd/"$'gr\xfcn'
    echo "long" >"$odd/$(printf 'long%.0s' {1..50})"
    touch "$odd/empty"
    truncate -s 3M "$odd/hole"
    echo "private" >"$odd/private" && chmod 4600 "$odd/private"
    echo "noted" >"$odd/noted"
    setfattr -n user.note -v "kept as well" "$odd/noted" 2>/dev/null ||
        echo "  ($work stores no extended attributes: the demo goes without)"
    touch -d "2001-02-03 04:05:06.789012345" "$odd/one name"
    touch -d "1999-12-31 23:59:59.999999999" "$odd/empty directory"
}

compare() { # two directories that must be the same, each seen from the other
    local differences
    differences=$(
        rsync -aHAXc --delete --dry-run --itemize-changes "$1/" "$2/"
        rsync -aHAXc --delete --dry-run --itemize-changes "$2/" "$1/"
    ) || fail "rsync could not compare $1 and $2"
    [ -z "$differences" ] || {
        printf '%s\n' "$differences" | head -n 40 >&2
        fail "$1 and $2 differ"
    }
    echo "  identical: names, bytes, owners, modes, times, links, extended attributes"
}

join_parts() { # NAME.tapefs-part-OFFSET, for files that were archived in pieces
    find "$1" -name '*.tapefs-part-*' -print0 | sort -z | while IFS= read -r -d '' part; do
        whole=${part%.tapefs-part-*}
        offset=$((10#${part##*.tapefs-part-}))
        dd if="$part" of="$whole" bs=1M oflag=seek_bytes seek="$offset" conv=notrunc status=none
        cp --attributes-only --preserve=all "$part" "$whole"
        rm "$part"
    done
}

say "1. A tree to keep: up to $megabytes MB of $tree, and some files that archives get wrong"
choose_files | rsync -aHAX --from0 --files-from=- "$tree/" "$source/tree/"
make_odd_files
files=$(find "$source" | wc -l)
size=$(du -sh --apparent-size "$source" | cut -f1)
echo "  $files files and directories, $size"

say "2. A virtual cartridge, formatted and mounted"
run tapefs format "virtual:$cartridge?personality=lto5&capacity=$((megabytes * 4 + 200))M" --name DEMO
run tapefs mount "virtual:$cartridge" "$mountpoint"

say "3. rsync it in"
run rsync -aHAX "$source" "$mountpoint/"
run tapefs status "$mountpoint"

say "4. Unmount: returns when everything is on tape"
run tapefs umount "$mountpoint"

say "5. Forget everything this host knows about the tape, and mount it from the tape alone"
run rm -rf "$TAPEFS_STATE_DIR"
run tapefs mount "virtual:$cartridge" "$mountpoint"
compare "$source" "$mountpoint/source"
run tapefs umount "$mountpoint"

say "6. The same cartridge without tapefs: nothing but GNU tar"
run tapefs cartridge info "$cartridge"
segments=$(tapefs cartridge info --json "$cartridge" | python3 -c '
import json, sys
print(*(f["number"] for f in json.load(sys.stdin)["tape_files"] if f["kind"] == "segment"))')
[ -n "$segments" ] || fail "there is no segment on the tape"
mkdir "$work/restored"
# Without the delay GNU tar replaces links to absolute paths after it has set directories' times.
tar_options=(--xattrs "--xattrs-include=*" --acls --delay-directory-restore -xpf -)
[ "$(id -u)" != 0 ] || tar_options=(--numeric-owner --same-owner "${tar_options[@]}")
for number in $segments; do
    printf '  $ tapefs cartridge cat $work/demo.tap %s | tar %s\n' "$number" "${tar_options[*]}"
    tapefs cartridge cat "$cartridge" "$number" | tar -C "$work/restored" "${tar_options[@]}" ||
        fail "tar could not read tape file $number"
done
(cd "$work/restored" && sha256sum --quiet --check .tapefs/segments/*.sha256) ||
    fail "the checksums on the tape do not match what tar restored"
echo "  every checksum on the tape matches (sha256sum --check)"
join_parts "$work/restored"
compare "$source" "$work/restored/source"

say "Done: $files files ($size) went to tape and came back identical, twice."
cat <<EOT
Next, with a cartridge that you keep (or a USB tape drive: 'usb' in place of 'virtual:first.tap'):
  source $home/.venv/bin/activate
  tapefs drives
  tapefs format virtual:first.tap --name FIRST
  mkdir -p ~/tape && tapefs mount virtual:first.tap ~/tape
  cp -a ~/Documents ~/tape/
  tapefs umount ~/tape
EOT
[ -z "$keep" ] || echo "The demo's cartridge is kept: $cartridge"
