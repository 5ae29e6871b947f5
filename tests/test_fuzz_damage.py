"""Damage in every record of a cartridge: each is noticed and named, and none is served as data.

A small volume with three checkpoints is damaged in one place at a time (bits flipped, records
zeroed, dropped, doubled, swapped, replaced, cut), mounted with the host's catalog and from the
tape alone, and everything is read. A mount may be refused, and a file may give EIO, but each with
a typed error; where something is missing without that, an event must have said so.

Each round tries every kind at every record, then as many random combinations. How many rounds is
said by `TAPEFS_DAMAGE_ROUNDS`; each damages other bytes.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from crash_rig import scratch
from fuzz_rig import randomness
from torn_rig import Spot, spots
from volume_rig import RECORD_BYTES, Rig, User

from tapefs import telemetry
from tapefs.config import Config
from tapefs.entries import ROOT_INO
from tapefs.errors import DataMismatch, TapefsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

ROUNDS = int(os.environ.get("TAPEFS_DAMAGE_ROUNDS", "1"))
COMBINATIONS = 150
LOSS_EVENTS = (telemetry.TORN_FILE, telemetry.TORN_FILE_SALVAGED, telemetry.SALVAGE_REFUSED)


def content(label: str, length: int) -> bytes:
    return random.Random(label).randbytes(length)


async def write_volume(rig: Rig) -> None:
    """Label; segment, checkpoint; segment, segment, checkpoint; segment, checkpoint."""
    await rig.format()
    async with rig.mounted() as user:
        user.mkdir("dir")
        await user.write("dir/big", content("big", 4 * RECORD_BYTES + 5))
        await user.write("dir/small", content("small", 1000))
        await user.write("kept", content("kept", RECORD_BYTES))
        await user.write("deleted", content("deleted", 100))
    async with rig.mounted() as user:
        await user.write("dir/big", content("patch", 3000), 2 * RECORD_BYTES)
        user.unlink("deleted")
        user.rename("dir/small", "renamed")
        await user.sync()
        await user.write("new", content("new", 2 * RECORD_BYTES))
        user.tree.link(user.find("kept").ino, ROOT_INO, b"again")
        user.tree.set_xattr(user.find("new").ino, b"user.note", b"\0\xff")
    async with rig.mounted() as user:
        await user.write("renamed", content("other", 2000))
        await user.write("last", content("last", 70_000))
        await user.truncate("new", RECORD_BYTES)


# -- damage

Image = list[bytes]  # the objects of a .tap image, lengths and all


def record(data: bytes) -> bytes:
    word = len(data).to_bytes(4, "little")
    return word + data + bytes(len(data) % 2) + word


def flipped(objects: list[Spot], at: int, rng: random.Random) -> list[bytes]:
    data = bytearray(objects[at].data or b"")
    # Where something stands, not only in what pads a record.
    filled = max(1, len(data.rstrip(b"\0")))
    data[rng.choice((rng.randrange(filled), rng.randrange(min(filled, 512))))] ^= (
        1 << rng.randrange(8)
    )
    return [record(bytes(data))]


def zeroed(objects: list[Spot], at: int, rng: random.Random) -> list[bytes]:
    del rng
    return [record(bytes(len(objects[at].data or b"")))]


def burst(objects: list[Spot], at: int, rng: random.Random) -> list[bytes]:
    data = bytearray(objects[at].data or b"")
    start = rng.randrange(0, max(1, len(data.rstrip(b"\0"))), 512)
    data[start : start + 512] = rng.randbytes(len(data[start : start + 512]))
    return [record(bytes(data))]


def cut_short(objects: list[Spot], at: int, rng: random.Random) -> list[bytes]:
    data = objects[at].data or b""
    return [record(data[: rng.randrange(1, len(data))])]


def made_longer(objects: list[Spot], at: int, rng: random.Random) -> list[bytes]:
    return [record((objects[at].data or b"") + rng.randbytes(512))]


def replaced(objects: list[Spot], at: int, rng: random.Random) -> list[bytes]:
    size = len(objects[at].data or b"")
    others = [s.data for s in objects if s.data and len(s.data) == size and s != objects[at]]
    return [record(rng.choice(others or [bytes(size)]))]


def dropped(objects: list[Spot], at: int, rng: random.Random) -> list[bytes]:
    del objects, at, rng
    return []


def doubled(objects: list[Spot], at: int, rng: random.Random) -> list[bytes]:
    del rng
    data = objects[at].data
    return [bytes(4), bytes(4)] if data is None else [record(data), record(data)]


KINDS: dict[str, Callable[[list[Spot], int, random.Random], list[bytes]]] = {
    kind.__name__: kind
    for kind in (flipped, zeroed, burst, cut_short, made_longer, replaced, dropped, doubled)
}
OF_FILEMARKS = ("dropped", "doubled")


def damaged(image: bytes, kind: str, at: int, rng: random.Random) -> bytes:
    """The image with one kind of damage in its object number `at`."""
    objects = spots(image)
    raw = [image[spot.start : spot.end] for spot in objects]
    if kind == "swapped":
        raw[at], raw[at + 1] = raw[at + 1], raw[at]
    else:
        raw[at : at + 1] = KINDS[kind](objects, at, rng)
    return b"".join(raw) + image[objects[-1].end :]


def points(image: bytes) -> list[tuple[str, int]]:
    """Every kind of damage at every object of the image."""
    objects = spots(image)
    found = []
    for at, spot in enumerate(objects):
        found += [(kind, at) for kind in KINDS if spot.data or kind in OF_FILEMARKS]
        if at + 1 < len(objects) and (spot.data or objects[at + 1].data):
            found.append(("swapped", at))
    return found


def place_of(objects: list[Spot], at: int) -> str:
    """How events call the record that is object `at`."""
    marks = [number for number, spot in enumerate(objects[:at]) if spot.data is None]
    return f"tape_file={len(marks)} record={at - marks[-1] - 1 if marks else at} "


# -- judgement


class Events(logging.Handler):
    """What the log said."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, line: logging.LogRecord) -> None:
        self.lines.append(line.getMessage())

    def names(self, *words: str) -> bool:
        """Whether one line holds all of `words`."""
        return any(all(word in line for word in words) for line in self.lines)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[Events]:
    """The log of this test, which the log police does not judge."""
    handler = Events()
    monkeypatch.setattr(telemetry.LOGGER, "handle", handler.handle)
    level = telemetry.LOGGER.level
    telemetry.LOGGER.setLevel(logging.INFO)
    yield handler
    telemetry.LOGGER.setLevel(level)


@dataclass
class Findings:
    """What came of all the damage."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


async def read_everything(user: User) -> dict[str, tuple[Any, ...] | TapefsError]:
    """Attributes and content of everything by path; the error of what cannot be read."""
    found: dict[str, tuple[Any, ...] | TapefsError] = {}
    catalog, stack = user.volume.catalog, [("", ROOT_INO)]
    while stack:
        path, directory = stack.pop()
        for _, name, ino in catalog.children(directory, 0, 1 << 30):
            inode, full = catalog.inode(ino), f"{path}/{name.decode()}"
            row = (inode.mode, inode.uid, inode.nlink, inode.size, inode.mtime_ns)
            if stat.S_ISDIR(inode.mode):
                stack.append((full, ino))
                found[full] = row
                continue
            try:
                found[full] = (*row, catalog.xattrs(ino), await user.read(full))
            except TapefsError as error:
                found[full] = error
    return found


class Sweep:
    """One volume, damaged again and again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rig = Rig(directory / "shelf", config=Config(settle_s=0, idle_s=3600, commit_s=1))
        self.findings = Findings()
        self.image = b""
        self.whole: dict[str, Any] = {}
        self.inos: dict[str, int] = {}

    async def prepare(self) -> None:
        self.rig.directory.mkdir()
        await write_volume(self.rig)
        self.image = self.rig.tap.read_bytes()
        async with self.rig.mounted(read_only=True) as user:
            user.evict_everything()
            self.whole = await read_everything(user)
            self.inos = {path: user.find(path).ino for path in self.whole}
        self.state = self.rig.state.rename(self.directory / "state as it was")

    async def try_point(
        self, kind: str, at: int, events: Events, *, alone: bool, salt: int
    ) -> None:
        rng = randomness("damage", kind, at, alone, salt)
        where = f"{kind} at object {at}, {'alone' if alone else 'with catalog'}"
        image = damaged(self.image, kind, at, rng)
        # Every third time the tape may be written.
        found = await self.shown(where, image, events, alone=alone, read_only=at % 3 > 0)
        if found is None:
            return
        if not alone and kind in ("dropped", "doubled") and at + 1 < len(spots(self.image)):
            self.findings.faults.append(f"{where}: nobody saw that the tape has another length")
        # A swapped record is met at its own place and at the other's.
        record = "record=" if kind == "swapped" else place_of(spots(self.image), at)
        self._judge(where, record, found, events)

    async def try_several(self, chosen: list[tuple[str, int]], events: Events, salt: int) -> None:
        rng, image = randomness("several", chosen, salt), self.image
        for kind, at in chosen:
            image = damaged(image, kind, at, rng)
        alone = rng.random() < 0.7
        where = f"{chosen}, {'alone' if alone else 'with catalog'}"
        found = await self.shown(where, image, events, alone=alone, read_only=rng.random() < 0.5)
        if found is not None:
            self._judge(where, "record=", found, events)

    async def shown(
        self, where: str, image: bytes, events: Events, *, alone: bool, read_only: bool
    ) -> dict[str, Any] | None:
        """What a mount of `image` shows, None when it was refused."""
        self.rig.tap.write_bytes(image)
        shutil.rmtree(self.rig.state, ignore_errors=True)
        if not alone:
            shutil.copytree(self.state, self.rig.state)
        events.lines.clear()
        try:
            async with self.rig.mounted(read_only=read_only) as user:
                user.evict_everything()
                return await read_everything(user)
        except BaseException as exc:  # noqa: BLE001 - what leaves a mount is the finding
            self._refused(where, exc)
        return None

    def _refused(self, where: str, exc: BaseException) -> None:
        while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
            exc = exc.exceptions[0]
        if isinstance(exc, TapefsError) and exc.fault.value != "bug":
            self.findings.outcomes[f"mount refused: {type(exc).__name__}"] += 1
            return
        self.findings.faults.append(f"{where}: the mount ended with {exc!r}")

    def _judge(self, where: str, record: str, found: dict[str, Any], events: Events) -> None:
        lost = [path for path in self.whole if path not in found]
        invented = [path for path in found if path not in self.whole]
        unreadable = [p for p in self.whole if isinstance(found.get(p), TapefsError)]
        wrong = [
            path
            for path, row in self.whole.items()
            if path in found and path not in unreadable and found[path] != row
        ]
        said_so = any(events.names(event) for event in LOSS_EVENTS)
        if (lost or invented or wrong) and not said_so:
            self.findings.faults.append(
                f"{where}: silently lost {lost}, invented {invented}, wrong {wrong}; {events.lines}"
            )
        for path in unreadable:
            # The file (a hard link by its first name), its bytes, and the record.
            ino = f"ino={self.inos[path]}"
            named = events.names(telemetry.DATA_MISMATCH, "path=", ino, "byte_range=")
            if not (named and events.names(telemetry.DATA_MISMATCH, record)):
                self.findings.faults.append(f"{where}: {path} {found[path]!r}: {events.lines}")
        outcome = "nothing missing"
        if unreadable:
            outcome = "files with EIO, named"
        if lost or invented or wrong:
            outcome = "explicit loss"
        self.findings.outcomes[outcome] += 1


@pytest.fixture
async def sweep() -> AsyncIterator[Sweep]:
    with scratch() as directory:
        sweep = Sweep(directory)
        await sweep.prepare()
        yield sweep


def conclude(sweep: Sweep, count: int) -> None:
    findings = sweep.findings
    print(f"damage: {count} injections, {dict(findings.outcomes.most_common())}")
    faults = findings.faults
    assert not faults, f"{len(faults)}:\n" + "\n".join(fault[:500] for fault in faults[:10])
    assert findings.outcomes["files with EIO, named"]
    assert findings.outcomes["mount refused: DamagedTape"]
    assert findings.outcomes.total() == count


async def test_damage_in_every_record(sweep: Sweep, events: Events) -> None:
    everything = points(sweep.image)
    for salt in range(ROUNDS):
        for kind, at in everything:
            for alone in (True, False):
                await sweep.try_point(kind, at, events, alone=alone, salt=salt)
    conclude(sweep, 2 * ROUNDS * len(everything))


async def test_damage_in_several_records(sweep: Sweep, events: Events) -> None:
    """Of kinds that leave every record at its place, so that mounts get further."""
    rng = randomness("several")
    last = len(spots(sweep.image)) - 1
    here = [
        (kind, at)
        for kind, at in points(sweep.image)
        if kind in ("flipped", "zeroed", "burst", "cut_short", "replaced") and at > 1
    ]
    # Half of them among what stands at the ends of tape files: journals, tails, catalogs.
    ends = [
        (kind, at) for kind, at in here if at == last or spots(sweep.image)[at + 1].data is None
    ]
    for salt in range(COMBINATIONS * ROUNDS):
        chosen = rng.sample(rng.choice((here, ends)), rng.randint(2, 5))
        await sweep.try_several(chosen, events, salt)
    conclude(sweep, COMBINATIONS * ROUNDS)


# -- what recovers without loss (the objects are: label, mark, then each tape file and its mark)


def last_record(sweep: Sweep, sequence: int) -> int:
    """The object that is the last record of a tape file."""
    marks = [at for at, spot in enumerate(spots(sweep.image)) if spot.data is None]
    return marks[sequence] - 1


def find(sweep: Sweep, sequence: int, text: bytes) -> tuple[int, int]:
    """The first object of a tape file that holds `text`, and where."""
    objects = spots(sweep.image)
    for at in range(last_record(sweep, sequence - 1) + 2, last_record(sweep, sequence) + 1):
        place = (objects[at].data or b"").find(text)
        if place >= 0:
            return at, place
    raise AssertionError(text)


def flip(sweep: Sweep, *places: tuple[int, int]) -> None:
    image = bytearray(sweep.image)
    for at, place in places:
        image[spots(sweep.image)[at].start + 4 + place] ^= 0x10
    sweep.image = bytes(image)


CHECKPOINTS, SEGMENTS = (2, 5, 7), (1, 3, 4, 6)


def catalog_of(sweep: Sweep, sequence: int) -> tuple[int, int]:
    at, place = find(sweep, sequence, b"\x28\xb5\x2f\xfd")  # Zstandard's magic number
    return at, place + 40


def tail_of(sweep: Sweep, sequence: int) -> tuple[int, int]:
    return find(sweep, sequence, b'"tapefs":"tail"')


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("what", [catalog_of, tail_of])
async def test_checkpoints_that_cannot_be_read_are_done_without(
    sweep: Sweep, events: Events, what: Callable[[Sweep, int], tuple[int, int]], count: int
) -> None:
    """The last, the last two, all three: the journals after an earlier one tell the same."""
    flip(sweep, *(what(sweep, sequence) for sequence in CHECKPOINTS[-count:]))
    found = await sweep.shown("", sweep.image, events, alone=True, read_only=False)
    assert sweep.findings.faults == []
    assert found == sweep.whole
    assert events.names(telemetry.ROLL_FORWARD, "damaged")


async def test_a_segment_without_end_needs_a_checkpoint_after_it(
    sweep: Sweep, events: Events
) -> None:
    flip(sweep, tail_of(sweep, 3))
    found = await sweep.shown("", sweep.image, events, alone=True, read_only=True)
    assert found is not None
    # Some of this file stands in the same record as the tail.
    assert isinstance(found.pop("/dir/big"), DataMismatch)
    assert found.items() < sweep.whole.items()
    flip(sweep, *(catalog_of(sweep, sequence) for sequence in CHECKPOINTS[1:]))
    assert await sweep.shown("", sweep.image, events, alone=True, read_only=True) is None
    assert sweep.findings.outcomes == {"mount refused: DamagedTape": 1}


async def test_a_tape_whose_end_is_not_proven_is_only_read(sweep: Sweep, events: Events) -> None:
    flip(sweep, tail_of(sweep, 7))
    before = sweep.image
    assert await sweep.shown("", sweep.image, events, alone=False, read_only=False) is None
    assert sweep.findings.outcomes == {"mount refused: DamagedTape": 1}
    assert sweep.rig.tap.read_bytes() == before
    assert await sweep.shown("", sweep.image, events, alone=False, read_only=True) == sweep.whole
    assert events.names(telemetry.ROLL_FORWARD, "damaged_tail=7")
