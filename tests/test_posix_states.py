"""What a program gets from a mount and from a local disk is the same, wherever a file's bytes are.

Every row of the table runs in a local directory, and on the mount in four states of its files; then
the catalog is lost, and what the rows left must be there again.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import posix_content_rows
import posix_name_rows
import posix_process_rows
import pytest
from first_light_rig import Host, digest_of, fingerprint, new_host
from posix_calls import Notes, Row, change_subjects, make_subjects
from tree_walk import below

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = pytest.mark.fuse

TABLES = (posix_content_rows, posix_name_rows, posix_process_rows)
ROWS: tuple[Row, ...] = tuple(row for table in TABLES for row in table.ROWS)
INSTEAD = {row: instead for table in TABLES for row, instead in table.INSTEAD.items()}
# Holes are punched on a disk only; which half of a directory a stream sees first is up to each.
LEAVES_ELSE = {"allocations", "directory_streams"}
# Where the bytes are when the rows run: not on tape yet; on tape and in the spool; on tape only,
# with a catalog that was lost and read back from it; the same, and then changed.
STATES = ("staged", "premigrated", "migrated", "changed")
# Nothing goes to tape but at unmount.
OPTIONS = "settle=3600,idle=3600"


def name_of(row: Row) -> str:
    """As it stands in the table."""
    return row.__name__


Tree: TypeAlias = "dict[bytes, tuple[object, ...]]"


@dataclass
class Walk:
    """What every row saw in every state on the mount and locally, and what was there after it."""

    mount: dict[tuple[str, str], Notes] = field(default_factory=dict)
    local: dict[tuple[str, str], Notes] = field(default_factory=dict)
    # user.tapefs.state of all files before the rows.
    words: dict[str, set[str]] = field(default_factory=dict)
    # By state: a tree, and the same tree after an unmount (and loss of the catalog).
    remounted: dict[str, tuple[Tree, Tree]] = field(default_factory=dict)
    rebuilt: dict[str, tuple[Tree, Tree]] = field(default_factory=dict)
    local_trees: dict[str, Tree] = field(default_factory=dict)


def make_all(root: Path, state: str) -> None:
    (root / state).mkdir()
    for row in ROWS:
        make_subjects(root / state / name_of(row))


def change_all(root: Path) -> None:
    for row in ROWS:
        change_subjects(root / "changed" / name_of(row))


def run_all(root: Path, state: str, notes: dict[tuple[str, str], Notes]) -> None:
    for row in ROWS:
        note = notes[state, name_of(row)] = Notes()
        row(root / state / name_of(row), note)


def state_words(root: Path, state: str) -> set[str]:
    files = [root / state / name_of(row) / name for row in ROWS for name in ("file", "second")]
    return {os.getxattr(file, "user.tapefs.state").decode() for file in files}


def tree(root: Path) -> Tree:
    """All that must be there again after an unmount, down to inode numbers and ctime."""
    attributes = fingerprint(root)
    found: Tree = {}
    for path in below(root):
        status = path.lstat()
        name = os.fsencode(path.relative_to(root))
        data = digest_of(path) if stat.S_ISREG(status.st_mode) else None
        identity = status.st_ino, status.st_ctime_ns, status.st_atime_ns
        found[name] = (data, *attributes[name], *identity)
    return found


def without_times(whole: Tree, rows: Iterable[str]) -> Tree:
    """What two filesystems can have in common of `rows`."""
    wanted = {os.fsencode(row) for row in rows}
    return {
        name: (*kept[:7], *kept[8:11])
        for name, kept in whole.items()
        if name.partition(b"/")[0] in wanted
    }


@pytest.fixture(scope="module")
def local() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tapefs-oracle-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with new_host() as host:
        yield host.format()


@pytest.fixture(scope="module")
def walk(host: Host, local: Path) -> Walk:
    walk = Walk()
    for state in STATES:
        make_all(local, state)
    change_all(local)
    for state in STATES:
        run_all(local, state, walk.local)
        walk.local_trees[state] = tree(local / state)
    host.mount(OPTIONS)
    walk_kept_spool(host, walk)
    host.forget()
    host.mount(OPTIONS)
    walk_lost_catalog(host, walk)
    return walk


def walk_kept_spool(host: Host, walk: Walk) -> None:
    """The first two states, after an unmount that the host remembers."""
    root = host.mountpoint
    root.chmod(0o755)
    for state in STATES[1:]:
        make_all(root, state)
    before = tree(root / "premigrated")
    host.umount()
    host.mount(OPTIONS)
    walk.words["premigrated"] = state_words(root, "premigrated")
    walk.remounted["premigrated"] = before, tree(root / "premigrated")
    make_all(root, "staged")
    walk.words["staged"] = state_words(root, "staged")
    for state in STATES[:2]:
        run_all(root, state, walk.mount)
    trees = {state: tree(root / state) for state in STATES[:2]}
    host.umount()
    host.forget()
    host.mount(OPTIONS)
    walk.rebuilt |= {state: (trees[state], tree(root / state)) for state in STATES[:2]}
    host.umount()


def walk_lost_catalog(host: Host, walk: Walk) -> None:
    """The other two; nothing has read these files since they are on tape only."""
    root = host.mountpoint
    for state in STATES[2:]:
        walk.words[state] = state_words(root, state)
    change_all(root)
    for state in STATES[2:]:
        run_all(root, state, walk.mount)
    trees = {state: tree(root / state) for state in STATES[2:]}
    host.umount()
    host.mount(OPTIONS)
    walk.remounted |= {state: (trees[state], tree(root / state)) for state in STATES[2:]}
    host.umount()
    host.forget()
    host.mount(OPTIONS)
    walk.rebuilt |= {state: (trees[state], tree(root / state)) for state in STATES[2:]}
    host.umount()


def test_the_files_were_where_they_should_be(walk: Walk) -> None:
    assert walk.words == {
        "staged": {"staged"},
        "premigrated": {"premigrated"},
        "migrated": {"migrated"},
        "changed": {"migrated"},
    }


@pytest.mark.parametrize("row", [name_of(row) for row in ROWS])
@pytest.mark.parametrize("state", STATES)
def test_calls_give_what_they_give_on_a_local_disk(walk: Walk, state: str, row: str) -> None:
    seen, wanted = walk.mount[state, row].seen, dict(walk.local[state, row].seen)
    for label, value in INSTEAD.get(row, {}).items():
        use, _, step = label.rpartition(": ")
        if step == "open":
            # What cannot be opened is not used either.
            wanted = {k: v for k, v in wanted.items() if k.rpartition(": ")[0] != use or k == label}
        wanted[label] = value
    assert list(seen) == list(wanted)
    different = [f"{k}: {v!r}, not {wanted[k]!r}" for k, v in seen.items() if v != wanted[k]]
    assert not different, "\n".join(different)


@pytest.mark.parametrize("state", STATES)
def test_what_the_calls_leave_is_what_they_leave_on_a_local_disk(walk: Walk, state: str) -> None:
    rows = {name_of(row) for row in ROWS} - LEAVES_ELSE
    on_tape = without_times(walk.rebuilt[state][1], rows)
    assert on_tape
    assert on_tape == without_times(walk.local_trees[state], rows)


@pytest.mark.parametrize("state", STATES[1:])
def test_an_unmount_changes_nothing(walk: Walk, state: str) -> None:
    before, after = walk.remounted[state]
    assert before
    assert after == before


@pytest.mark.parametrize("state", STATES)
def test_the_loss_of_the_catalog_changes_nothing(walk: Walk, state: str) -> None:
    before, after = walk.rebuilt[state]
    assert before
    assert after == before
