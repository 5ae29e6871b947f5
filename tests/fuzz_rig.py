"""Bytes that no honest device or writer makes, from a seed: the same every time.

`TAPEFS_FUZZ_INPUTS` says how many inputs a group of tests tries, 10,000 when not set; groups whose
inputs take long try a share of that. `TAPEFS_TEST_SEED` says which ones. A failure names the number
of the input; that and the seed repeat it.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from conftest import SEED

from tapefs.errors import TapefsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_USUAL = 10_000
INPUTS = int(os.environ.get("TAPEFS_FUZZ_INPUTS", _USUAL))
# An input that keeps the program busy this long has hung it.
STUCK_S = 60
# Numbers at the edges of fields.
_EDGES = (0, 1, 2, 7, 0x0F, 0x10, 0x1F, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0xFE, 0xFF)


def input_count(usual: int) -> int:
    """How many inputs a group tries: `usual`, or more or fewer in proportion."""
    return max(1, usual * INPUTS // _USUAL)


class Stuck(BaseException):
    """The program does not come back. Not an Exception, so that nothing on the way takes it."""


def _ring(*_: object) -> None:
    raise Stuck


@contextmanager
def unstuck() -> Iterator[None]:
    """Fails what runs inside when one input of a Tally does not end. For the main thread."""
    before = signal.signal(signal.SIGALRM, _ring)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def randomness(*label: object) -> random.Random:
    """The dice for what `label` names, under this run's seed."""
    return random.Random(f"{SEED} {label}")


class Mutator:
    """Damages bytes in every way that a liar or a bad wire would."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._ways: tuple[Callable[[bytearray], object], ...] = (
            self._flip_bits,
            self._set_bytes,
            self._lie_about_a_length,
            self._truncate,
            self._extend,
            self._cut_out,
            self._double,
            self._swap,
            self._zero,
        )

    def mutated(self, data: bytes) -> bytes:
        """`data` with one to three kinds of damage, or one time in eight something else."""
        rng = self.rng
        if rng.random() < 0.125:
            return rng.randbytes(rng.choice((0, 1, 2, 3, 4, 7, 8, 12, 13, 18, 20, 32, 64, 252)))
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(self._ways)(damaged)
        return bytes(damaged)

    def _place(self, data: bytearray) -> int:
        return self.rng.randrange(len(data)) if data else 0

    def _flip_bits(self, data: bytearray) -> None:
        for _ in range(self.rng.choice((1, 1, 2, 8)) if data else 0):
            data[self._place(data)] ^= 1 << self.rng.randrange(8)

    def _set_bytes(self, data: bytearray) -> None:
        for _ in range(self.rng.choice((1, 2, 4)) if data else 0):
            data[self._place(data)] = self.rng.choice((*_EDGES, self.rng.randrange(256)))

    def _lie_about_a_length(self, data: bytearray) -> None:
        width = self.rng.choice((1, 2, 3, 4, 8))
        at = self.rng.randrange(min(len(data), 32) + 1)
        lie = self.rng.choice((0, 1, len(data), len(data) + 1, 1 << 8 * width - 1, -1))
        data[at : at + width] = (lie % (1 << 8 * width)).to_bytes(width, "big")

    def _truncate(self, data: bytearray) -> None:
        del data[self._place(data) :]

    def _extend(self, data: bytearray) -> None:
        data += self.rng.choice((bytes(16), self.rng.randbytes(64), bytes(data)))

    def _cut_out(self, data: bytearray) -> None:
        at = self._place(data)
        del data[at : at + self.rng.choice((1, 2, 4, 8))]

    def _double(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = data[at : at + self.rng.choice((1, 2, 4, 16))]

    def _swap(self, data: bytearray) -> None:
        one, other = self._place(data), self._place(data)
        if data:
            data[one], data[other] = data[other], data[one]

    def _zero(self, data: bytearray) -> None:
        at = self._place(data)
        length = min(self.rng.choice((1, 4, 16)), len(data) - at)
        data[at : at + length] = bytes(length)


class Tally:
    """What became of the inputs of one group: taken, or refused with which typed error."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.outcomes: Counter[str] = Counter()

    @contextmanager
    def input(self, number: object, data: object = "") -> Iterator[None]:
        """One input. Anything that leaves the block but a TapefsError fails the test."""
        if signal.getsignal(signal.SIGALRM) is _ring:
            signal.alarm(STUCK_S)
        try:
            yield
        except TapefsError as error:
            self.outcomes[type(error).__name__] += 1
        except BaseException as exc:
            exc.add_note(f"{self.group}, input {number}, seed {SEED}: {data!r:.2000}")
            raise
        else:
            self.outcomes["taken"] += 1

    @property
    def total(self) -> int:
        return self.outcomes.total()

    def report(self) -> None:
        """Print the figures; some inputs must have been taken and some refused."""
        print(f"fuzzed {self.group}: {self.total} inputs, {dict(self.outcomes.most_common())}")
        assert self.outcomes["taken"], self.outcomes
        assert self.total > self.outcomes["taken"], self.outcomes


def fuzz(
    group: str,
    corpus: Sequence[bytes],
    use: Callable[[bytes], Any],
    count: int,
) -> Tally:
    """Give `count` damaged members of `corpus` to `use`."""
    mutator, tally = Mutator(randomness(group)), Tally(group)
    with unstuck():
        for number in range(count):
            data = mutator.mutated(mutator.rng.choice(corpus))
            with tally.input(number, data):
                use(data)
    return tally
