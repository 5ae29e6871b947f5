"""The parameter data that the emulated drive reports: identity, modes, logs, the cartridge's chip.

Each function answers one page, or raises `CheckConditionStatus` when the personality lacks it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tapefs.config import MIB
from tapefs.emulator import status
from tapefs.emulator.status import CheckConditionStatus
from tapefs.scsi.cdb import PageControl
from tapefs.scsi.data import (
    TAPE_DEVICE_TYPE,
    BlockDescriptor,
    BlockLimits,
    DataCompressionPage,
    DeviceConfigurationPage,
    LogPage,
    MalformedData,
    ModeParameters,
    StandardInquiry,
    SupportedPages,
    TapeAlert,
    TapeCapacity,
    UnitSerialNumber,
)
from tapefs.scsi.log import (
    DEVICE_STATISTICS_PAGE,
    READ_ERRORS_PAGE,
    SEQUENTIAL_ACCESS_PAGE,
    SUPPORTED_PAGES_PAGE,
    TAPE_ALERT_PAGE,
    TAPE_CAPACITY_PAGE,
    VOLUME_STATISTICS_PAGE,
    WRITE_ERRORS_PAGE,
)

if TYPE_CHECKING:
    from tapefs.emulator.deck import Deck, DriveLog, Faults
    from tapefs.emulator.personality import Personality

_IDENTIFICATION_PAGE: Final = 0x83
_ACCESS_CAPABILITIES_PAGE: Final = 0xB0
_ALL_PAGES: Final = 0x3F
_ALL_SUBPAGES: Final = 0xFF
_CONTROL_PAGE: Final = 0x0A
_COMPRESSION_PAGE: Final = 0x0F
_CONFIGURATION_PAGE: Final = 0x10
_EXCEPTIONS_PAGE: Final = 0x1C
_DENSITY_UNCHANGED: Final = 0x7F
_MB: Final = 1_000_000


def inquiry(personality: Personality) -> bytes:
    """Standard INQUIRY data."""
    return StandardInquiry(personality.vendor, personality.product, personality.revision).pack()


def vital_product_data(personality: Personality, serial: str, page: int) -> bytes:
    """A vital product data page."""
    pages = (0x00, 0x80, _IDENTIFICATION_PAGE, _ACCESS_CAPABILITIES_PAGE)
    if page == 0x00:
        return SupportedPages(pages).pack()
    if page == 0x80:
        return UnitSerialNumber(serial).pack()
    if page == _IDENTIFICATION_PAGE:
        # One designator: ASCII, of the logical unit, "T10 vendor ID based".
        name = f"{personality.vendor:8}{personality.product:16}{serial}".encode("ascii")
        body = bytes((0x02, 0x01, 0x00, len(name))) + name
        return struct.pack(">BBH", TAPE_DEVICE_TYPE, page, len(body)) + body
    if page == _ACCESS_CAPABILITIES_PAGE:
        return struct.pack(">BBHBB", TAPE_DEVICE_TYPE, page, 2, 0, 0)
    raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)


def block_limits(personality: Personality) -> BlockLimits:
    """What READ BLOCK LIMITS says."""
    return BlockLimits(
        personality.block_bytes_min,
        personality.block_bytes_max,
        personality.granularity_exponent,
    )


def density_support(personality: Personality) -> bytes:
    """REPORT DENSITY SUPPORT (SSC-4): one density, that of the personality's own cartridges."""
    capacity_mb = personality.capacity_bytes // _MB
    code = personality.density_code
    text = f"{personality.vendor[:8]:8}{personality.name.upper():8}{personality.product:20}"
    # Writable and default; bits per mm, width and tracks are not made up.
    descriptor = struct.pack(">BBBxxxxxxxxxI", code, code, 0xA0, capacity_mb) + text.encode("ascii")
    return struct.pack(">Hxx", len(descriptor) + 2) + descriptor


@dataclass(slots=True)
class Modes:
    """The mode parameters as they are; a new object is the state after power on."""

    personality: Personality
    block_bytes: int = field(init=False)
    buffered: bool = True
    compression: bool = field(init=False)

    def __post_init__(self) -> None:
        self.block_bytes = self.personality.default_block_bytes
        self.compression = self.personality.compresses

    def sense(
        self,
        page: int,
        subpage: int,
        control: PageControl,
        *,
        write_protected: bool,
        descriptor: bool,
        ten: bool,
    ) -> bytes:
        """MODE SENSE data, complete. Page 0 is header and descriptor alone."""
        if control is PageControl.SAVED:
            raise CheckConditionStatus(status.SAVING_NOT_SUPPORTED)
        known = self._pages()
        if page == _ALL_PAGES and subpage in (0, _ALL_SUBPAGES):
            bodies = list(known.values())
        elif page == 0 and subpage == 0:
            bodies = []
        elif page in known and subpage == 0:
            bodies = [known[page]]
        else:
            raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
        if control is PageControl.CHANGEABLE:
            bodies = [_changeable(body) for body in bodies]
        block = BlockDescriptor(self.personality.density_code, 0, self.block_bytes)
        return ModeParameters(
            write_protected=write_protected,
            buffered_mode=int(self.buffered),
            descriptor=block if descriptor else None,
            pages=b"".join(bodies),
        ).pack(ten=ten)

    def select(self, parameters: bytes, *, ten: bool) -> None:
        """MODE SELECT: all of it is applied, or nothing and CheckConditionStatus is raised."""
        if not parameters:
            return
        try:
            wanted = ModeParameters.unpack(parameters, ten=ten, select=True)
        except MalformedData as exc:
            raise CheckConditionStatus(status.PARAMETER_LIST_LENGTH) from exc
        compression = self._checked_pages(wanted.pages)
        if wanted.descriptor is not None:
            self._check_descriptor(wanted.descriptor)
            self.block_bytes = wanted.descriptor.block_bytes
        self.buffered = wanted.buffered_mode > 0
        if compression is not None:
            self.compression = compression

    def _check_descriptor(self, descriptor: BlockDescriptor) -> None:
        density_ok = descriptor.density in (0, _DENSITY_UNCHANGED, self.personality.density_code)
        length_bytes = descriptor.block_bytes
        if length_bytes == 0:
            length_ok = not self.personality.fixed_only
        else:
            length_ok = block_limits(self.personality).allow(length_bytes)
        if not (density_ok and length_ok):
            raise CheckConditionStatus(status.INVALID_FIELD_IN_PARAMETERS)

    def _checked_pages(self, rest: bytes) -> bool | None:
        """Whether to compress, where the list says so. Other changes are refused."""
        compression = None
        known = self._pages()
        while rest:
            if len(rest) < 2 or len(rest) < 2 + rest[1]:
                raise CheckConditionStatus(status.PARAMETER_LIST_LENGTH)
            page, rest = rest[: 2 + rest[1]], rest[2 + rest[1] :]
            code = page[0] & 0x3F
            if code not in known or len(page) != len(known[code]):
                raise CheckConditionStatus(status.INVALID_FIELD_IN_PARAMETERS)
            if code == _COMPRESSION_PAGE:
                compression = DataCompressionPage.unpack(page).enabled
        return compression

    def _pages(self) -> dict[int, bytes]:
        pages = {
            _CONTROL_PAGE: bytes((_CONTROL_PAGE, 10)) + bytes(10),
            _CONFIGURATION_PAGE: DeviceConfigurationPage(
                block_identifiers=self.personality.has_read_position,
                compression_algorithm=int(self.compression),
            ).pack(),
            _EXCEPTIONS_PAGE: bytes((_EXCEPTIONS_PAGE, 10)) + bytes(10),
        }
        if self.personality.compresses:
            pages[_COMPRESSION_PAGE] = DataCompressionPage(self.compression, capable=True).pack()
        return dict(sorted(pages.items()))


def _changeable(page: bytes) -> bytes:
    """The mask of what MODE SELECT may change in a page: enabling compression, nothing else."""
    first = 0x80 if page[0] == _COMPRESSION_PAGE else 0
    return page[:2] + bytes((first,)) + bytes(len(page) - 3)


def log_page(
    personality: Personality, log: DriveLog, faults: Faults, deck: Deck | None, page: int
) -> bytes:
    """LOG SENSE data of one page, cumulative values. Reading TapeAlert clears it.

    Pages about the cartridge need `deck`.
    """
    if page not in _log_pages(personality):
        raise CheckConditionStatus(status.INVALID_FIELD_IN_CDB)
    if page == SUPPORTED_PAGES_PAGE:
        codes = bytes(_log_pages(personality))
        return struct.pack(">BxH", page, len(codes)) + codes
    if page == TAPE_ALERT_PAGE:
        flags = faults.raised_alerts() | log.alerts
        log.alerts.clear()
        return TapeAlert(flags).pack()
    if page in _OF_THE_DRIVE:
        return LogPage(page, _OF_THE_DRIVE[page](log, faults)).pack()
    if page == personality.compression_log_page:
        return LogPage(page, _compression(log)).pack()
    if deck is None:
        raise CheckConditionStatus(status.NO_MEDIUM)
    if page == TAPE_CAPACITY_PAGE:
        capacity = TapeCapacity(deck.remaining_bytes, deck.nominal_bytes)
        return capacity.pack(personality.capacity_log_unit_bytes)
    return _volume_statistics(log, deck)


def _write_errors(log: DriveLog, faults: Faults) -> dict[int, bytes]:
    corrected = faults.corrected_in(log.written_bytes)
    return _error_counters(corrected, log.written_bytes, log.write_errors)


def _read_errors(log: DriveLog, faults: Faults) -> dict[int, bytes]:
    corrected = faults.corrected_in(log.read_bytes)
    return _error_counters(corrected, log.read_bytes, log.read_errors)


def _error_counters(corrected: int, moved_bytes: int, uncorrected: int) -> dict[int, bytes]:
    """SPC-4, error counter log pages: at once, delayed, repeated, corrected, algorithm runs."""
    counts = (corrected, 0, corrected, corrected, corrected)
    values = {code: count.to_bytes(8, "big") for code, count in enumerate(counts)}
    values[5] = moved_bytes.to_bytes(8, "big")
    values[6] = uncorrected.to_bytes(4, "big")
    return values


def _sequential_access(log: DriveLog, faults: Faults) -> dict[int, bytes]:
    values = {
        code: moved_bytes.to_bytes(8, "big")
        for code, moved_bytes in enumerate((log.written_bytes,) * 2 + (log.read_bytes,) * 2)
    }
    values[0x0100] = int(faults.wants_cleaning).to_bytes(8, "big")
    return values


def _device_statistics(log: DriveLog, _faults: Faults) -> dict[int, bytes]:
    """A drive that was never cleaned and has been switched on for this run only."""
    counts = {0x0000: log.loads, 0x0001: 0, 0x0002: 0, 0x0003: 0, 0x0008: 0}
    return {code: count.to_bytes(4, "big") for code, count in counts.items()}


_OF_THE_DRIVE: Final = {
    WRITE_ERRORS_PAGE: _write_errors,
    READ_ERRORS_PAGE: _read_errors,
    SEQUENTIAL_ACCESS_PAGE: _sequential_access,
    DEVICE_STATISTICS_PAGE: _device_statistics,
}


def _compression(log: DriveLog) -> dict[int, bytes]:
    """Nothing is made smaller here; 0 where nothing was moved."""
    ratios = (log.read_bytes, log.written_bytes)
    return {code: (100 * bool(moved)).to_bytes(2, "big") for code, moved in enumerate(ratios)}


def _log_pages(personality: Personality) -> list[int]:
    pages = {
        SUPPORTED_PAGES_PAGE: True,
        WRITE_ERRORS_PAGE: True,
        READ_ERRORS_PAGE: True,
        SEQUENTIAL_ACCESS_PAGE: personality.has_sequential_access_log,
        DEVICE_STATISTICS_PAGE: personality.has_device_statistics,
        VOLUME_STATISTICS_PAGE: personality.has_volume_statistics,
        TAPE_ALERT_PAGE: personality.has_tape_alert,
        TAPE_CAPACITY_PAGE: personality.capacity_log_unit_bytes > 0,
        personality.compression_log_page: True,
    }
    return sorted(page for page, has_it in pages.items() if has_it)


def _volume_statistics(log: DriveLog, deck: Deck) -> bytes:
    """Log page 17h, the parameters that hosts look at; capacities as records for partition 0."""
    total, remaining = deck.nominal_bytes // _MB, deck.remaining_bytes // _MB
    memory = deck.cartridge.memory

    def partition(megabytes: int) -> bytes:
        return struct.pack(">BxHI", 7, 0, megabytes)

    values = {
        0x0000: b"\x01",
        0x0001: memory.load_count.to_bytes(4, "big"),
        0x0004: log.write_errors.to_bytes(2, "big"),
        0x0009: log.read_errors.to_bytes(2, "big"),
        0x0010: (log.written_bytes // _MB).to_bytes(4, "big"),
        0x0011: (log.read_bytes // _MB).to_bytes(4, "big"),
        0x0202: partition(total),
        0x0203: partition(total - remaining),
        0x0204: partition(remaining),
    }
    return LogPage(VOLUME_STATISTICS_PAGE, values).pack()


def attributes(personality: Personality, deck: Deck, first: int) -> bytes:
    """READ ATTRIBUTE, values: attributes of the cartridge's chip from `first` on (SPC-4)."""
    memory = deck.cartridge.memory
    binary, text = 0x00, 0x01
    values: tuple[tuple[int, int, bytes], ...] = (
        (0x0000, binary, (deck.remaining_bytes // MIB).to_bytes(8, "big")),
        (0x0001, binary, (deck.nominal_bytes // MIB).to_bytes(8, "big")),
        (0x0003, binary, memory.load_count.to_bytes(8, "big")),
        (0x0009, binary, memory.volume_change_reference.to_bytes(4, "big")),
        (0x0400, text, f"{personality.vendor:8}".encode("ascii")),
        (0x0401, text, memory.serial.encode("ascii", "replace")[:32].ljust(32)),
    )
    body = b"".join(
        # Bit 7: the host cannot change it.
        struct.pack(">HBH", code, 0x80 | kind, len(value)) + value
        for code, kind, value in values
        if code >= first
    )
    return struct.pack(">I", len(body)) + body
