"""The state of the emulated drive: its cartridge, its modes, and what it has to tell the host."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from tapefs.emulator import status
from tapefs.emulator.deck import Deck, DriveLog, Faults
from tapefs.emulator.motion import MotionModel
from tapefs.emulator.parameters import Modes
from tapefs.emulator.status import CheckConditionStatus
from tapefs.scsi.sense import Sense

if TYPE_CHECKING:
    from tapefs.emulator.medium import VirtualCartridge
    from tapefs.emulator.personality import Personality
    from tapefs.emulator.tape_stream import TapeStream

# Older unit attentions give way to newer ones.
_ATTENTIONS_MAX: Final = 8


class LogicalUnit:
    """A tape drive between two commands. Not thread-safe."""

    def __init__(
        self,
        personality: Personality,
        serial: str,
        cartridge: VirtualCartridge | None,
        becoming_ready_polls: int,
        stream: TapeStream | None,
    ) -> None:
        """Power on. Raises MediumFailed when the cartridge's chip cannot be written."""
        self.personality: Final = personality
        self.serial: Final = serial
        self.becoming_ready_polls = becoming_ready_polls
        self._stream = stream
        self.faults: Final = Faults()
        self.log: Final = DriveLog()
        self.modes = Modes(personality)
        self.removal_prevented = False
        self.attentions: Final = deque[Sense](maxlen=_ATTENTIONS_MAX)
        self.cartridge = cartridge
        self.deck: Deck | None = None
        self._polls_left = 0
        self._busy_s = 0.0
        self._storage = bytearray()
        if cartridge is not None:
            self._thread(cartridge)
        self.start()

    @property
    def busy_s(self) -> float:
        """How long a real drive would have been at work so far."""
        return self._busy_s + (self.deck.busy_s if self.deck else 0.0)

    def start(self) -> None:
        """Modes, locks and pending attentions are as after power on."""
        self.modes = Modes(self.personality)
        self.removal_prevented = False
        self.log.reset()
        self.attentions.clear()
        self.attentions.append(status.POWER_ON)
        self._polls_left = self.becoming_ready_polls
        self.apply_modes()

    def ready_deck(self) -> Deck:
        """The deck, for a command that needs the medium. Raises CheckConditionStatus."""
        if self.deck is None:
            raise CheckConditionStatus(status.NO_MEDIUM)
        if self._polls_left > 0:
            self._polls_left -= 1
            raise CheckConditionStatus(status.BECOMING_READY)
        return self.deck

    def load(self) -> None:
        """Thread the cartridge that is in the drive; one that is threaded already is rewound."""
        if self.cartridge is None:
            raise CheckConditionStatus(status.NO_MEDIUM)
        if self.deck is not None:
            self.deck.locate(0)
            return
        self._thread(self.cartridge)
        self._polls_left = self.becoming_ready_polls
        self.attentions.append(status.MEDIUM_MAY_HAVE_CHANGED)

    def unload(self) -> None:
        """Write the buffer out and unthread, or raise CheckConditionStatus and stay loaded."""
        if self.deck is not None:
            self.deck.flush()
            self.drop()

    def drop(self) -> None:
        """Unthread without another thought for the buffer."""
        self._busy_s = self.busy_s
        self.deck = None

    def apply_modes(self) -> None:
        """Let the deck know of changed modes."""
        if self.deck is not None:
            self.deck.buffered_mode = self.modes.buffered

    def storage(self, size_bytes: int) -> memoryview:
        """Memory for data on its way to the host; the previous answer's is used again."""
        if len(self._storage) < size_bytes:
            self._storage = bytearray(size_bytes)
        return memoryview(self._storage)[:size_bytes]

    def _thread(self, cartridge: VirtualCartridge) -> None:
        cartridge.count_load()
        self.log.loads += 1
        self.deck = Deck(cartridge, self.personality, self.faults, self.log, self._stream)
        self.apply_modes()
        motion = MotionModel(self.personality, cartridge.memory.capacity_bytes)
        self._busy_s += motion.load_s(first=cartridge.memory.load_count == 1)
