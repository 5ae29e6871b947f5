"""The host's side of every command: sends it, judges its sense, and knows when to send it again.

SAM calls the side that sends commands the initiator. Reading and writing proper are in
`tapefs.drive.tape`; this module has what is the same for every command.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tapefs import telemetry
from tapefs.drive.activity import Activity
from tapefs.drive.position import PositionCounter
from tapefs.errors import MalformedData
from tapefs.scsi.sense import (
    AbortedCommand,
    CheckCondition,
    DeferredError,
    DriveAdvice,
    HardwareError,
    MediumError,
    ModeParametersChanged,
    OverlappedCommands,
    Reaction,
    Recovered,
    Sense,
    UnitAttention,
    UnknownOpcode,
    WriteProtectedCondition,
    check_condition,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tapefs.drive.transport import More, Step, Transport
    from tapefs.scsi.cdb import Command
    from tapefs.scsi.completion import Completion, DataBuffer

# A drive may queue several unit attentions; each is reported once.
ATTEMPTS_MAX: Final = 10
# A command that leaves the medium alone and was aborted may be sent this often in all.
ABORTED_ATTEMPTS_MAX: Final = 3

_NOTHING_SAID: Final = Sense()
# What puts the medium in doubt until somebody has looked at it again.
_IN_DOUBT: Final = (Reaction.REMOUNT, Reaction.NO_MEDIUM)
_HEAD_KNOWN: Final = (Reaction.SUCCESS, Reaction.RESULT, Reaction.RESEND, Reaction.RESELECT)


@dataclass(slots=True)
class DriveStatistics:
    """What went through a drive since it was opened."""

    blocks_read: int = 0
    bytes_read: int = 0
    blocks_written: int = 0
    bytes_written: int = 0
    filemarks_written: int = 0
    locates: int = 0
    check_conditions: int = 0
    recovered_errors: int = 0
    unit_attentions: int = 0
    # Medium and hardware errors, and what the drive wants of the operator.
    failures: int = 0


class Initiator:
    """Sends commands over one transport. One caller at a time: there is no queue here.

    While `in_session`, whatever puts the medium in doubt (unit attentions 28h and 29h, no medium)
    raises, and so does every later command that would move the medium, until `begin_session`
    says that the medium has been looked at again.
    """

    __slots__ = (
        "_doubt",
        "_reselect",
        "_transport",
        "activity",
        "counter",
        "in_session",
        "statistics",
    )

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._doubt: Sense | None = None
        self._reselect: Callable[[], Awaitable[None]] | None = None
        self.activity = Activity()
        self.counter = PositionCounter()
        self.statistics = DriveStatistics()
        self.in_session = False

    @property
    def medium_is_known(self) -> bool:
        """In session, and nothing has put the medium in doubt."""
        return self.in_session and self._doubt is None

    def begin_session(self, reselect: Callable[[], Awaitable[None]]) -> None:
        """From now on the medium must stay what it is; follows `end_session` or a new start.

        `reselect` sends MODE SELECT again.
        """
        self._reselect = reselect
        self.in_session = True

    def end_session(self) -> None:
        """The medium may come and go again; its position is unknown."""
        self._doubt = None
        self.in_session = False
        self.counter.lose()

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()

    async def perform(
        self, command: Command, data: DataBuffer | bytes | None = None
    ) -> tuple[Completion, CheckCondition | None]:
        """Send `command`; return its end and what its sense, if any, means.

        Unit attentions that only inform, and deferred reports of success, are dealt with here by
        sending the command again, which was not executed (SPC-4, unit attention; deferred
        errors). A command that leaves the medium alone is also repeated when it was aborted.

        Any other failure of a command that moves the medium makes the position unknown, except
        a refusal (unknown command, write protection); so does any failure of the transport,
        which raises. Conditions with reaction SUCCESS or RESULT leave the counter to the caller.
        """
        done, condition = await self.perform_each([(command, data)])
        return done[-1][1], condition

    async def perform_each(
        self, steps: Sequence[Step], more: More | None = None
    ) -> tuple[list[tuple[Step, Completion]], CheckCondition | None]:
        """`perform` for one step after the other, up to the first that has something to report.

        After the last of them `more` is asked for those that follow, where the wire is. Returns the
        steps carried out with their ends, and what the last of them had to report.
        """
        given = list(steps)
        ended: list[Completion] = []
        attempt = 0

        def following() -> Sequence[Step]:
            found = more() if more else ()
            given.extend(found)
            return found

        while True:
            left = given[len(ended) :]
            self._refuse_in_doubt(left)
            self.activity.begin(left[0][0], trio.current_time())
            try:
                completions = await self._transport.execute_each(left, following)
            except BaseException:
                self.counter.lose()
                raise
            self._note_activity(given[len(ended) :], completions)
            ended += completions
            if completions[-1].good:
                return list(zip(given, ended, strict=True)), None
            attempt = attempt + 1 if len(completions) == 1 else 1
            command = given[len(ended) - 1][0]
            condition = self._judge(command, completions[-1])
            if not await self._is_passed(command, condition, attempt):
                return list(zip(given, ended, strict=False)), condition
            del ended[-1]

    def _note_activity(self, steps: Sequence[Step], completions: Sequence[Completion]) -> None:
        now_s = trio.current_time()
        for (command, data), completion in zip(steps, completions, strict=False):
            sent = 0 if data is None or not completion.good else len(data)
            self.activity.end(command, len(completion.data) or sent, now_s)

    def _refuse_in_doubt(self, steps: Sequence[Step]) -> None:
        if self._doubt is not None:
            for command, _ in steps:
                if command.moves_medium:
                    raise check_condition(self._doubt, command.name)

    async def run(self, command: Command, data: DataBuffer | bytes | None = None) -> Completion:
        """Like `perform`, but everything that is not a success raises as CheckCondition."""
        completion, condition = await self.perform(command, data)
        if condition is not None and condition.reaction is not Reaction.SUCCESS:
            if command.moves_medium and condition.reaction is Reaction.RESULT:
                self.counter.lose()
            raise condition
        return completion

    def _judge(self, command: Command, completion: Completion) -> CheckCondition:
        # Sense that says nothing was lost on its way, or never asked for in time: what became of
        # the command nobody can say. Of one that leaves the medium alone it does not matter.
        silent = completion.sense == _NOTHING_SAID and command.moves_medium
        if completion.sense is None or silent:
            self.counter.lose()
            raise MalformedData(
                f"the drive failed {command.name} without saying why;"
                " power-cycle the drive and try again"
            )
        condition = check_condition(completion.sense, command.name)
        self.statistics.check_conditions += 1
        if isinstance(condition, Recovered):
            self.statistics.recovered_errors += 1
        if isinstance(condition, MediumError | HardwareError | DriveAdvice):
            self.statistics.failures += 1
        if command.moves_medium and not _tells_position(condition):
            self.counter.lose()
        return condition

    async def _is_passed(self, command: Command, condition: CheckCondition, attempt: int) -> bool:
        """Whether the command may simply be sent again."""
        if isinstance(condition, DriveAdvice):
            telemetry.event(telemetry.DRIVE_ADVICE, logging.WARNING, says=condition)
        if self.in_session and condition.reaction in _IN_DOUBT:
            self._doubt = condition.sense
            self.counter.lose()
            return False
        if isinstance(condition, UnitAttention):
            self.statistics.unit_attentions += 1
            telemetry.event(telemetry.UNIT_ATTENTION, sense=condition.sense.code)
            if isinstance(condition, ModeParametersChanged) and self._reselect and self.in_session:
                # MODE SELECT itself may report the same once more; it must not come back here.
                reselect, self._reselect = self._reselect, None
                try:
                    await reselect()
                finally:
                    self._reselect = reselect
            return attempt < ATTEMPTS_MAX
        if isinstance(condition, DeferredError):
            return condition.reaction is Reaction.SUCCESS and attempt < ATTEMPTS_MAX
        if isinstance(condition, AbortedCommand) and not isinstance(condition, OverlappedCommands):
            return not command.moves_medium and attempt < ABORTED_ATTEMPTS_MAX
        return False


def _tells_position(condition: CheckCondition) -> bool:
    """Whether the head is where it was, or where the condition itself says."""
    if isinstance(condition, DeferredError):
        return condition.reaction is Reaction.SUCCESS
    if isinstance(condition, UnknownOpcode | WriteProtectedCondition):
        return True
    return condition.reaction in _HEAD_KNOWN
