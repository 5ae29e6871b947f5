"""A real tree goes to tape and comes back: through the mount, and through tar without tapefs."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest
from first_light_rig import (
    COMPARE,
    RSYNC,
    Host,
    assert_same,
    copy_share,
    feed_tape_files,
    fingerprint,
    new_host,
    pipe_into,
    quiet,
    restore_with_tar,
)
from torture_tree import make_torture_tree
from tree_walk import below

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fuse

SHARE_BYTES = 300_000_000
SHARE_INODES = 12_000


@pytest.fixture(scope="module")
def archived() -> Iterator[Host]:
    """A host whose cartridge has the tree `source`, finalized, and which knows nothing of it."""
    with new_host() as host:
        source = host.root / "source"
        source.mkdir()
        copy_share(source / "share", SHARE_BYTES, SHARE_INODES)
        make_torture_tree(source / "torture")
        host.format().mount()
        started = time.monotonic()
        quiet(*RSYNC, source, f"{host.mountpoint}/")
        in_spool = time.monotonic()
        host.umount()
        ended = time.monotonic()
        host.forget()
        sizes = [path.lstat().st_size for path in below(source)]
        size, count = sum(sizes), len(sizes)
        print(
            f"{count} inodes, {size / 1e6:.0f} MB: rsync {in_spool - started:.1f} s "
            f"({count / (in_spool - started):.0f} files/s), umount {ended - in_spool:.1f} s"
        )
        yield host


@pytest.fixture
def remounted(archived: Host) -> Iterator[Host]:
    """The tape of `archived`, mounted by a host that has never seen it."""
    archived.mount()
    yield archived
    archived.umount()
    archived.forget()


def test_mounted_from_the_tape_alone_rsync_finds_nothing_to_do(remounted: Host) -> None:
    source = remounted.root / "source"
    assert_same(source, remounted.mountpoint / "source")
    assert fingerprint(remounted.mountpoint / "source") == fingerprint(source)


def test_metadata_moves_no_tape(remounted: Host) -> None:
    source, copy = remounted.root / "source", remounted.mountpoint / "source"
    assert quiet("ls", "-lR", copy).count("\n") > 1000
    assert quiet("find", copy, "-printf", "%p %s %T@\\n").count("\n") > 1000
    quiet("du", "-s", copy)
    without_checksums = [word.replace("-aHAXc", "-aHAX") for word in COMPARE]
    assert quiet(*without_checksums, f"{source}/", f"{copy}/") == ""
    since_mount = remounted.status()["since_mount"]
    assert (since_mount["recalls"], since_mount["records_read"]) == (0, 0)
    # The counters do count.
    (copy / "torture" / "large").read_bytes()
    assert remounted.status()["since_mount"]["records_read"] > 0


def test_a_mount_that_changes_nothing_leaves_the_content_as_it_is(archived: Host) -> None:
    before = archived.image.read_bytes()
    archived.mount("ro")
    quiet("find", archived.mountpoint)
    archived.umount()
    archived.forget()
    assert archived.image.read_bytes() == before


def test_gnu_tar_restores_everything_but_sockets(archived: Host) -> None:
    restored, source = archived.root / "restored", archived.root / "source"
    try:
        restore_with_tar(archived.image, restored)
        # tar knows no sockets; tapefs has them in its journal.
        assert_same(source, restored / "source", "--exclude=socket")
        expected = fingerprint(source)
        assert expected.pop(b"torture/nodes/socket")
        assert fingerprint(restored / "source") == expected
    finally:
        shutil.rmtree(restored, ignore_errors=True)


def test_bsdtar_lists_and_restores_without_a_word(archived: Host) -> None:
    restored, source = archived.root / "restored", archived.root / "source"
    restored.mkdir()
    try:
        feed_tape_files(archived.image, pipe_into(["bsdtar", "-tvf", "-"], restored))
        assert list(restored.iterdir()) == []
        extract = ["bsdtar", "--numeric-owner", "--acls", "--xattrs", "-xpf", "-"]
        feed_tape_files(archived.image, pipe_into(extract, restored))
        # It sets the time of a directory before the symlinks in it, which follow the directory,
        # and its default ACL only if nothing is in it yet; adds the fraction of a second before
        # 1970 where it should subtract it; takes names that Unicode calls equivalent for one,
        # and does not know how GNU tar writes "=" and "%" in the name of an attribute.
        unlike = ["--exclude=socket", "--omit-dir-times", "--exclude=/torture/empty"]
        unlike += ["--exclude=/torture/names/-rf", "--exclude=/torture/lists/shared"]
        unlike += ["--exclude=/torture/names/\u00e9*", "--exclude=/torture/names/e\u0301*"]
        unlike += ["--exclude=/torture/attributes/crowded"]
        assert_same(source, restored / "source", *unlike)
    finally:
        shutil.rmtree(restored, ignore_errors=True)


def test_changes_in_a_later_mount_are_appended_and_win() -> None:
    """Renames, deletions, new content, also of files that are on tape already (P4, P6)."""
    with new_host() as host:
        source, copy = host.root / "source", host.mountpoint / "source"
        make_torture_tree(source)
        host.format().mount()
        quiet(*RSYNC, source, f"{host.mountpoint}/")
        host.umount()
        before = host.image.read_bytes()
        host.forget()
        host.mount()
        for root in (source, copy):
            (root / "large").rename(root / "names" / "renamed")
            (root / "links" / "two").unlink()
            shutil.rmtree(root / "nodes")
            with (root / "sparse").open("r+b") as file:
                file.seek(1000)
                file.write(b"into the hole")
                file.truncate(5_000_000)
            with (root / "links" / "one").open("ab") as file:
                file.write(b"one more line\n")
            (root / "attributes" / "noted").chmod(0o600)
        quiet(*RSYNC, f"{source}/", f"{copy}/")
        host.umount()
        host.forget()
        host.mount()
        assert_same(source, copy)
        assert fingerprint(copy) == fingerprint(source)
        assert host.image.read_bytes()[: len(before)] == before
