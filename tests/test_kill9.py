"""kill -9 at random moments under a real mount, again and again on one cartridge and one tree.

Each round: mount, look at everything that was promised so far, let programs work, kill the daemon.
Some rounds kill it during an unmount; some lose the host as well, once everything was reported to
be on tape. `TAPEFS_KILL_ROUNDS` is the number of rounds, `TAPEFS_TEST_SEED` chooses others.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from conftest import SEED
from first_light_rig import (
    PROGRAMS,
    STUCK_S,
    Host,
    assert_same,
    feed_tape_files,
    fingerprint,
    is_mounted,
    new_host,
    pipe_into,
    quiet,
)
from kill_rig import ChangingTree, Cut, Ledger, Scribe
from torture_tree import make_torture_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fuse

ROUNDS = int(os.environ.get("TAPEFS_KILL_ROUNDS", "5"))
# Small bursts, so that the archiver is at work when the daemon is killed.
HASTY = "burst=4M,settle=0.1,idle=0.3,checkpoint_segments=4"
PATIENT = "idle=3600,checkpoint_segments=4"


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made.format()


class Rounds:
    """What is carried from one round to the next."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.rng = random.Random(SEED)
        self.scribe = Scribe(host.mountpoint / "scribe", self.rng)
        self.ledger = Ledger(host.mountpoint)
        self.tree = ChangingTree(host.root / "source", self.rng)
        self.cut = Cut(self.ledger, host.mountpoint, self.tree.root)
        self.kinds = Counter[str]()
        self.looked_at = 0

    def one(self) -> None:
        """Mount, look, work, die."""
        self.host.mount(self.rng.choice((HASTY, HASTY, PATIENT)))
        self.look()
        self.tree.change()
        work = self.rng.choice((self._during_work, self._during_work, self._during_unmount))
        work()
        self._clear_dead_mount()

    def look(self) -> None:
        """Everything that was promised is there."""
        self.scribe.check()
        self.looked_at += self.ledger.check() + len(self.scribe.promised)

    def _during_work(self) -> None:
        """Kill while the scribe and another program write."""
        second = self.rng.choice((self.cut.cp, self.cut.tar, self.cut.rm))
        self.kinds["killed during work"] += 1
        killer = threading.Timer(self.rng.uniform(0.02, 2.0), self.host.daemon.kill)
        others = [threading.Thread(target=program()) for program in (self.cut.rsync, second)]
        self.scribe.step()
        killer.start()
        try:
            for other in others:
                other.start()
            self.scribe.write_until_it_breaks()
        finally:
            for thread in (killer, *others):
                thread.join()
        assert self.host.daemon.has_ended()

    def _during_unmount(self) -> None:
        """Kill while everything goes to tape; when it got there, the host may be lost too."""
        for _ in range(self.rng.randrange(1, 6)):
            self.scribe.step()
        self.cut.rsync()()
        command = self.rng.choice(("umount", "sync"))
        killer = threading.Timer(self.rng.uniform(0.02, 1.2), self.host.daemon.kill)
        with subprocess.Popen(
            [PROGRAMS / "tapefs", command, self.host.mountpoint],
            env=self.host.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting:
            killer.start()
            _, said = waiting.communicate(timeout=STUCK_S)
            killer.join()
        assert "Traceback" not in said
        self.kinds[f"killed during {command}, which ended with {waiting.returncode}"] += 1
        if waiting.returncode == 0 and self.rng.random() < 0.5:
            self.kinds["host lost"] += 1
            self.host.forget()

    def _clear_dead_mount(self) -> None:
        """As a person would, or not at all."""
        if is_mounted(self.host.mountpoint):
            way = self.rng.choice(("umount -i -l", "fusermount3 -uz", ""))
            self.kinds[f"cleared with '{way}'"] += 1
            if way:
                quiet(*way.split(), self.host.mountpoint)


def test_killed_again_and_again_nothing_promised_is_lost(host: Host) -> None:
    rounds = Rounds(host)
    for number in range(ROUNDS):
        rounds.one()
        print(f"round {number + 1}: {dict(rounds.kinds)}, {rounds.looked_at} files looked at")
    everything_is_on_the_tape(rounds)
    print(f"seed {SEED}, {ROUNDS} rounds, {rounds.looked_at} files looked at, lost 0")
    tar_reads_every_closed_tape_file(host, torn_max=ROUNDS)


def everything_is_on_the_tape(rounds: Rounds) -> None:
    """What the tape alone shows after an orderly end."""
    host, tree = rounds.host, rounds.tree.root
    make_torture_tree(tree / "torture")
    host.mount(HASTY)
    rounds.look()
    rounds.cut.rsync()()
    host.umount()
    host.forget()
    host.mount()
    rounds.look()
    assert_same(tree, host.mountpoint / "tree")
    assert fingerprint(host.mountpoint / "tree") == fingerprint(tree)
    host.umount()


def tar_reads_every_closed_tape_file(host: Host, torn_max: int) -> None:
    """Only what a kill tore has no end of archive; the mount after it closed it with a filemark."""
    directory = host.root / "listed"
    directory.mkdir()
    script = 'tar -tf - >/dev/null 2>"$0" && [ ! -s "$0" ] && rm "$0" || true'

    def reader(number: int) -> subprocess.Popen[bytes]:
        words = ["bash", "-c", script, str(number)]
        process: subprocess.Popen[bytes] = pipe_into(words, directory)(number)
        return process

    count = feed_tape_files(host.image, reader)
    torn = [path.read_text() for path in directory.iterdir()]
    assert len(torn) <= torn_max < count
    assert all("Unexpected EOF" in complaint for complaint in torn), torn
