"""Fault plans: what is to go wrong with an emulated drive, as text that a person can write.

One fault a line; docs/fault-plans.md describes the lines. The same plan over the same commands
gives the same run, and a seed stands for a plan: `seeded(7).lines` is what it means.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from tapefs import telemetry
from tapefs.config import parse_bytes
from tapefs.emulator.cable import Replug, Switch
from tapefs.emulator.deck import AlertFault
from tapefs.emulator.fault_queue import FaultPoint
from tapefs.emulator.target import UnitFault
from tapefs.emulator.wire_faults import (
    EVERYWHERE,
    IN_PLACE_OF_DATA,
    FaultEffect,
    WireFault,
)
from tapefs.errors import UsageError
from tapefs.scsi import cdb
from tapefs.scsi.command import Plain
from tapefs.scsi.sense import Sense, SenseKey

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from tapefs.emulator.bot_device import BotDevice
    from tapefs.emulator.target import Target

T = TypeVar("T")

_PLAN_BYTES_MAX: Final = 1 << 20
_SEED_PREFIX: Final = "seed:"
_ALWAYS: Final = "always"
# More often than any run passes a block.
_FOREVER: Final = 1 << 62
_NUMBER: Final = re.compile("[0-9]{1,18}")
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_SENSE: Final = re.compile("([0-9A-Fa-f])/([0-9A-Fa-f]{2})/([0-9A-Fa-f]{2})")
_COMMANDS: Final = frozenset(
    each.name
    for each in vars(cdb).values()
    if isinstance(each, type) and issubclass(each, Plain) and hasattr(each, "name")
)

_WIRE_POINTS: Final = {
    point.name.lower(): point
    for point in FaultPoint
    if point not in (FaultPoint.EXECUTION, FaultPoint.REPORT)
}
_EFFECTS: Final = {effect.name.lower(): effect for effect in FaultEffect}
_UNTIL: Final = {
    "class_reset": FaultPoint.CLASS_RESET,
    "port_reset": FaultPoint.PORT_RESET,
    "replug": None,
}
_WHEN: Final = frozenset({"command", "skip", "times"})


class _Words:
    """The words of one line: two names, then options. Everything wrong with it is a UsageError."""

    def __init__(self, line: str, where: str) -> None:
        self._where = where
        first, *rest = line.split() or [""]
        self.point = first
        self.effect = rest[0] if rest else ""
        self._options: dict[str, str] = {}
        for word in rest[1:]:
            name, has_value, value = word.partition("=")
            if not has_value or name in self._options:
                raise self.wrong(f"'{word}' is no option, or one given twice; write NAME=VALUE")
            self._options[name] = value

    def wrong(self, what: str) -> UsageError:
        """The error for this line."""
        return UsageError(f"{self._where}: {what} (docs/fault-plans.md)")

    def allow(self, names: Iterable[str]) -> None:
        """Refuse options that mean nothing here."""
        known = sorted(names)
        for name in self._options:
            if name not in known:
                raise self.wrong(
                    f"'{self.point} {self.effect}' has no option '{name}'; it has {known}"
                )

    def one_of(self, name: str, choice: dict[str, T], default: T) -> T:
        """The option's value, which is a key of `choice`."""
        text = self._options.get(name)
        if text is None:
            return default
        if text not in choice:
            raise self.wrong(f"{name} is one of {sorted(choice)}, not '{text}'")
        return choice[text]

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number from 0; without a default it must be given."""
        text = self._options.get(name)
        if text is None and default is not None:
            return default
        if text is None or not _NUMBER.fullmatch(text):
            raise self.wrong(f"'{self.point} {self.effect}' wants {name}=N, a whole number from 0")
        return int(text)

    def number_if_given(self, name: str) -> int | None:
        """The same for an option that has no default."""
        return self.number(name) if name in self._options else None

    def seconds_if_given(self, name: str) -> float | None:
        """A number of seconds, such as 0.5."""
        text = self._options.get(name)
        if text is not None and not _SECONDS.fullmatch(text):
            raise self.wrong(f"{name} is a number of seconds, not '{text}'")
        return None if text is None else float(text)

    def times(self) -> int | None:
        """How often; None for always."""
        if self._options.get("times") == _ALWAYS:
            return None
        times = self.number("times", 1)
        if not times:
            raise self.wrong("times is 1 or more, or 'always'")
        return times

    def text(self, name: str) -> str:
        """The option as it stands; it must be given."""
        value = self._options.get(name)
        if not value:
            raise self.wrong(f"'{self.point} {self.effect}' needs {name}=...")
        return value

    def size(self, name: str) -> int:
        """Bytes, such as 40M."""
        try:
            return parse_bytes(self.text(name))
        except UsageError as exc:
            raise self.wrong(str(exc)) from exc

    def flags(self, name: str) -> frozenset[int]:
        """TapeAlert flags, such as 20,21."""
        parts = self.text(name).split(",")
        if not all(_NUMBER.fullmatch(part) and 1 <= int(part) <= 64 for part in parts):
            raise self.wrong(f"{name} is a list of TapeAlert flags from 1 to 64, such as 20,21")
        return frozenset(map(int, parts))

    def sense(self) -> Sense:
        """KEY/ASC/ASCQ in hexadecimal, with flags and information as further options."""
        match = _SENSE.fullmatch(self.text("sense"))
        if not match:
            raise self.wrong("sense is KEY/ASC/ASCQ in hexadecimal, such as 3/0C/00")
        key, asc, ascq = (int(part, 16) for part in match.groups())
        yes_no = {"yes": True, "no": False}
        return Sense(
            SenseKey(key),
            asc,
            ascq,
            end_of_medium=self.one_of("eom", yes_no, default=False),
            information=self.number_if_given("information"),
            deferred=self.one_of("deferred", yes_no, default=False),
        )

    def command(self) -> str:
        """The name of a command, as the standard writes it; empty for any."""
        text = self._options.get("command", "").replace("_", " ")
        if text and text not in _COMMANDS:
            raise self.wrong(f"no command is called '{text}'; write it like WRITE(6)")
        return text


@dataclass(slots=True)
class FaultPlan:
    """What shall fail. `lines` is the whole of it; the rest is what they were understood as."""

    lines: tuple[str, ...] = ()
    wire: list[WireFault] = field(default_factory=list)
    unit: list[UnitFault] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    unreadable: dict[int, int] = field(default_factory=dict)
    unwritable: dict[int, int] = field(default_factory=dict)
    alerts: list[AlertFault] = field(default_factory=list)
    corrected_per_mib: int = 0
    wants_cleaning: bool = False
    end_bytes: int | None = None
    early_warning_bytes: int | None = None

    @classmethod
    def parse(cls, text: str, name: str = "fault plan") -> Self:
        """Understand a plan. Raises UsageError that names the line and what is wrong with it."""
        plan = cls()
        kept = []
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.partition("#")[0].strip()
            if line:
                plan._add(_Words(line, f"{name}, line {number}"))
                kept.append(" ".join(line.split()))
        plan.lines = tuple(kept)
        return plan

    @classmethod
    def named(cls, name: str) -> Self:
        """`seed:NUMBER`, or the plan in the file `name`. Raises UsageError."""
        if name.startswith(_SEED_PREFIX):
            seed = name.removeprefix(_SEED_PREFIX)
            if not seed.isascii() or not seed.isdecimal():
                raise UsageError(f"'{name}' is no seed; write seed:7")
            return cls.parse("\n".join(seeded(int(seed))), name)
        try:
            with Path(name).open("rb") as file:
                text = file.read(_PLAN_BYTES_MAX).decode()
        except (OSError, ValueError) as exc:
            raise UsageError(f"the fault plan {name} cannot be read: {exc}") from exc
        return cls.parse(text, name)

    def apply(self, target: Target, device: BotDevice | None = None) -> None:
        """Plan all of it for this drive; without a `device` there is no wire that could fail."""
        telemetry.event(telemetry.FAULTS_PLANNED, plan="; ".join(self.lines))
        target.unit_faults.plan(*self.unit)
        target.faults.unreadable.update(self.unreadable)
        target.faults.unwritable.update(self.unwritable)
        target.faults.alerts.plan(*self.alerts)
        target.faults.corrected_per_mib = self.corrected_per_mib
        target.faults.wants_cleaning = self.wants_cleaning
        target.faults.end_bytes = self.end_bytes
        target.faults.early_warning_bytes = self.early_warning_bytes
        if device is not None:
            device.faults.plan(*self.wire)
            device.cable.add(*self.switches)

    def _add(self, words: _Words) -> None:
        kinds = {
            "unit": self._add_unit,
            "drive": self._add_report,
            "medium": self._add_medium,
            "cable": self._add_switch,
        }
        if words.point in _WIRE_POINTS:
            self._add_wire(words)
        elif words.point in kinds:
            kinds[words.point](words)
        else:
            known = sorted((*_WIRE_POINTS, *kinds))
            raise words.wrong(f"'{words.point}' is no place; a line begins with one of {known}")

    def _add_wire(self, words: _Words) -> None:
        point = _WIRE_POINTS[words.point]
        effect = _EFFECTS.get(words.effect)
        if effect is None or effect not in _effects_at(point):
            known = sorted(each.name.lower() for each in _effects_at(point))
            raise words.wrong(f"'{words.point}' is followed by one of {known}")
        options = set(_WHEN)
        replug = None
        if effect in (FaultEffect.UNPLUG, FaultEffect.POWER_CUT):
            options |= {"replug_polls", "replug_s"}
            polls, after_s = (
                words.number_if_given("replug_polls"),
                words.seconds_if_given("replug_s"),
            )
            replug = Replug(polls, after_s)
        elif effect is FaultEffect.HANG:
            options.add("until")
        words.allow(options)
        self.wire.append(
            WireFault(
                point,
                effect,
                command=words.command(),
                skip_count=words.number("skip", 0),
                times=words.times(),
                replug=replug,
                until=words.one_of("until", _UNTIL, FaultPoint.CLASS_RESET),
            )
        )

    def _add_unit(self, words: _Words) -> None:
        if words.effect == "check":
            words.allow(_WHEN | {"sense", "eom", "information", "deferred"})
            sense = words.sense()
        elif words.effect == "good":
            words.allow(_WHEN)
            sense = None
        else:
            raise words.wrong("'unit' is followed by 'check' or 'good'")
        self.unit.append(
            UnitFault(
                sense=sense,
                command=words.command(),
                skip_count=words.number("skip", 0),
                times=words.times(),
            )
        )

    def _add_report(self, words: _Words) -> None:
        """What the drive says of itself."""
        if words.effect == "alert":
            words.allow({"flags", "skip", "times"})
            flags, skip = words.flags("flags"), words.number("skip", 0)
            self.alerts.append(AlertFault(flags=flags, skip_count=skip, times=words.times()))
        elif words.effect == "cleaning":
            words.allow(())
            self.wants_cleaning = True
        else:
            raise words.wrong("'drive' is followed by 'alert' or 'cleaning'")

    def _add_medium(self, words: _Words) -> None:
        if words.effect == "worn":
            words.allow({"corrected"})
            self.corrected_per_mib = words.number("corrected")
            return
        if words.effect in ("unreadable", "unwritable"):
            words.allow({"block", "times"})
            blocks = self.unreadable if words.effect == "unreadable" else self.unwritable
            times = words.times()
            blocks[words.number("block")] = _FOREVER if times is None else times
            return
        words.allow({"bytes"})
        if words.effect == "end":
            self.end_bytes = words.size("bytes")
        elif words.effect == "early_warning":
            self.early_warning_bytes = words.size("bytes")
        else:
            known = ["unreadable", "unwritable", "worn", "end", "early_warning"]
            raise words.wrong(f"'medium' is followed by one of {known}")

    def _add_switch(self, words: _Words) -> None:
        if words.effect not in ("out", "power_off"):
            raise words.wrong("'cable' is followed by 'out' or 'power_off'")
        words.allow({"file"})
        self.switches.append(Switch(Path(words.text("file")), power=words.effect == "power_off"))


def _effects_at(point: FaultPoint) -> frozenset[FaultEffect]:
    if point is FaultPoint.DATA:
        return EVERYWHERE | IN_PLACE_OF_DATA
    if point is FaultPoint.STATUS:
        return frozenset(FaultEffect) - IN_PLACE_OF_DATA
    return EVERYWHERE


# What a seed may draw, weighed by how often it stands here: what happens in the field happens here.
_DRAWN: Final = (
    "command stall",
    "command silence",
    "command unplug replug_polls={few}",
    "data stall",
    "data silence",
    "data skip_data",
    "data unplug replug_polls={few}",
    "status stall",
    "status silence",
    "status silence",
    "status empty",
    "status short",
    "status wrong_tag",
    "status bad_signature",
    "status phase_error",
    "status reserved_status",
    "status zero_residue",
    "status full_residue",
    "status hang until=class_reset",
    "status hang until=port_reset",
    "status unplug replug_polls={few}",
    "status power_cut replug_polls={few}",
    "unit check sense=2/04/01 times={few}",
    "unit check sense=6/28/00",
    "unit check sense=6/29/00",
    "unit check sense=6/2A/01",
    "unit check sense=B/47/00",
    "unit check sense=1/17/01",
    "unit check sense=4/44/00",
    "unit check sense=3/0C/00 deferred=yes",
)
_FAULTS_MAX: Final = 4
_SKIP_MAX: Final = 150
_BLOCK_MAX: Final = 60
_BAD_BLOCK_SHARE: Final = 0.25


def seeded(seed: int) -> tuple[str, ...]:
    """The lines that this seed stands for: one to four faults somewhere in the first commands."""
    rng = random.Random(seed)  # noqa: S311 - repeatable is what is wanted
    lines = []
    for _ in range(rng.randint(1, _FAULTS_MAX)):
        if rng.random() < _BAD_BLOCK_SHARE:
            kind = rng.choice(("unreadable", "unwritable"))
            block, times = rng.randrange(_BLOCK_MAX), rng.randint(1, 3)
            lines.append(f"medium {kind} block={block} times={times}")
        else:
            line = rng.choice(_DRAWN).format(few=rng.randint(1, 3))
            lines.append(f"{line} skip={rng.randrange(_SKIP_MAX)}")
    return tuple(lines)
