"""What a drive says of its own state and of its cartridge's: alerts, errors, wear, compression.

Nothing here moves the tape. Drives are asked only for the log pages that they list; a page that is
refused or cannot be understood is one that the drive does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from tapefs.drive.probe import log_page
from tapefs.errors import MalformedData
from tapefs.scsi.attributes import MediumAttributes
from tapefs.scsi.cdb import LogSense, ReadAttribute
from tapefs.scsi.log import (
    COMPRESSION_PAGE,
    DEVICE_STATISTICS_PAGE,
    OLD_COMPRESSION_PAGE,
    READ_ERRORS_PAGE,
    SEQUENTIAL_ACCESS_PAGE,
    SUPPORTED_PAGES_PAGE,
    TAPE_ALERT_PAGE,
    VOLUME_STATISTICS_PAGE,
    WRITE_ERRORS_PAGE,
    CompressionRatios,
    DeviceStatistics,
    ErrorCounters,
    LogPage,
    TapeAlert,
    VolumeStatistics,
    cleaning_requested,
    supported_pages,
)
from tapefs.scsi.sense import IllegalRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.drive.initiator import Initiator

T = TypeVar("T")

_ATTRIBUTES_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class DriveHealth:
    """One look at a drive with a cartridge in it. None: this drive has no such page.

    `alerts` are the flags that were raised since somebody looked last: the drive forgets them when
    it is asked (SSC-4, TapeAlert), so whoever asks must keep them.
    """

    alerts: frozenset[int] | None = None
    write_errors: ErrorCounters | None = None
    read_errors: ErrorCounters | None = None
    cleaning_requested: bool | None = None
    device: DeviceStatistics | None = None
    volume: VolumeStatistics | None = None
    attributes: MediumAttributes | None = None
    compression: CompressionRatios | None = None


async def read_health(initiator: Initiator, *, asks_chip: bool) -> DriveHealth:
    """Ask for every page that the drive lists, once; TapeAlert last, when all else went well.

    With `asks_chip` also for the cartridge's chip, where page 17h does not tell the same. Raises
    what `Initiator.run` raises, but for a page that is refused.
    """
    pages = _Pages(initiator, await _listed_pages(initiator))
    volume = await pages.read(VOLUME_STATISTICS_PAGE, VolumeStatistics.from_page)
    chip = None
    if asks_chip and (volume is None or volume.loads_count is None):
        chip = await _attributes(initiator)
    compression = await pages.read(COMPRESSION_PAGE, CompressionRatios.from_page)
    if compression is None:
        compression = await pages.read(OLD_COMPRESSION_PAGE, CompressionRatios.from_page)
    return DriveHealth(
        write_errors=await pages.read(WRITE_ERRORS_PAGE, ErrorCounters.from_page),
        read_errors=await pages.read(READ_ERRORS_PAGE, ErrorCounters.from_page),
        cleaning_requested=await pages.read(SEQUENTIAL_ACCESS_PAGE, cleaning_requested),
        device=await pages.read(DEVICE_STATISTICS_PAGE, DeviceStatistics.from_page),
        volume=volume,
        attributes=chip,
        compression=compression,
        alerts=await pages.read(TAPE_ALERT_PAGE, lambda page: TapeAlert.from_page(page).flags),
    )


class _Pages:
    def __init__(self, initiator: Initiator, listed: frozenset[int]) -> None:
        self._initiator = initiator
        self._listed = listed

    async def read(self, code: int, understand: Callable[[LogPage], T]) -> T | None:
        if code not in self._listed:
            return None
        page = await log_page(self._initiator, code)
        # Some bridges answer with another page than the one that was asked for.
        return understand(page) if page is not None and page.page == code else None


async def _listed_pages(initiator: Initiator) -> frozenset[int]:
    try:
        return supported_pages((await initiator.run(LogSense(SUPPORTED_PAGES_PAGE))).data)
    except (IllegalRequest, MalformedData):
        return frozenset()


async def _attributes(initiator: Initiator) -> MediumAttributes | None:
    command = ReadAttribute(allocation_bytes=_ATTRIBUTES_BYTES)
    try:
        return MediumAttributes.unpack((await initiator.run(command)).data)
    except (IllegalRequest, MalformedData):
        return None
