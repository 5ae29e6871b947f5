"""What kind of drive the emulated one is: strings, sizes, speeds, and which commands it has.

docs/personalities.md says of each what it lacks and does oddly. Figures come from vendors' manuals
where those say them. Early-warning zones and search times of old drives were not published; those
are plausible numbers of the right size. Buffers and lowest
rates: HP's manual of the Ultrium 960 (LTO-3), Dell's of its LTO-5 and DDS-4 drives (that of the
latter for all DAT), Quantum's figures of LTO-8 and LTO-9, published figures of the AIT-1; the
buffer of LTO-8 and LTO-9, and that of all others, is a guess. Nobody publishes how long a
back-hitch takes: Fermilab measured 3 s for a stop at a filemark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tapefs.config import GIB, KIB, MIB
from tapefs.errors import UsageError

_MB: Final = 1_000_000
_GB: Final = 1000 * _MB


@dataclass(frozen=True, slots=True)
class Personality:
    """One drive model. Sizes are bytes, times seconds, rates bytes per second."""

    name: str
    vendor: str
    product: str
    revision: str
    capacity_bytes: int
    rate_bytes_per_s: int
    # What the emulated drive holds back at most before it writes to the image. Real drives have
    # more; here it is host memory.
    buffer_bytes: int
    density_code: int
    # The stretch between early warning and the physical end; at most a twentieth of the tape.
    early_warning_bytes: int
    # READ BLOCK LIMITS.
    block_bytes_min: int = 1
    block_bytes_max: int = 16 * MIB - 1
    granularity_exponent: int = 0
    # Block length in the mode block descriptor after power on; 0 is variable.
    default_block_bytes: int = 0
    fixed_only: bool = False
    # Data accepted behind early warning still goes through the buffer, so that the physical end
    # may be found out about data accepted earlier. Others write through there.
    buffers_past_early_warning: bool = False
    has_locate: bool = True
    # LOCATE(16) and SPACE(16).
    has_wide_addresses: bool = False
    has_read_position: bool = True
    has_long_position: bool = True
    # READ POSITION says what of it is still in the buffer; else last and first object are the same.
    tells_buffered: bool = True
    # READ POSITION has an answer, but never one with a position in it.
    knows_position: bool = True
    # Writes at the beginning, behind the first object, at the end of data; elsewhere 50h/00h.
    appends_only: bool = False
    # Early warning is the EOM bit alone, without code and qualifier.
    bare_early_warning: bool = False
    # MODE SENSE(6) is refused unless its allocation ends where header, descriptor or data do.
    strict_mode_allocation: bool = False
    # SPACE stops at filemarks when it counts blocks, and says how far it got.
    space_tells: bool = True
    has_log_pages: bool = True
    # Unit of log page 31h in bytes; 0: the drive has no such page.
    capacity_log_unit_bytes: int = 0
    has_tape_alert: bool = True
    # Log page 0Ch: bytes before and behind compression, and whether the drive wants cleaning.
    has_sequential_access_log: bool = False
    # Log page 14h, device statistics.
    has_device_statistics: bool = False
    # Log page 17h, volume statistics.
    has_volume_statistics: bool = False
    # The log page with compression ratios, 1Bh or 32h; 0: none.
    compression_log_page: int = 0
    # READ ATTRIBUTE: the cartridge has a chip that can be read.
    has_attributes: bool = False
    compresses: bool = True
    # Motion: how the tape is laid out and how long the head takes along it.
    wrap_count: int = 1
    full_search_s: float = 60.0
    motion_start_s: float = 2.0
    stop_s: float = 3.0
    load_s: float = 10.0
    # What the first load of a new cartridge takes on top of that.
    first_load_s: float = 0.0
    # The drive's own buffer, for `TapeStream` alone: nothing is kept in it.
    drive_buffer_bytes: int = 10 * _MB
    # How slow the tape may run to wait for the host; None: it has one speed.
    rate_min_bytes_per_s: int | None = None
    # Unit attention 29h/03h after a Bulk-Only Mass Storage Reset.
    reports_class_reset: bool = True
    # bInterfaceSubClass: 06h transparent SCSI; 02h ATAPI and 03h QIC-157, with CDBs of 12 bytes.
    usb_subclass: int = 0x06
    # As libusb counts: 2 full speed, 3 high speed.
    usb_speed: int = 3

    @property
    def lowest_rate_bytes_per_s(self) -> int:
        """How slow the tape may run."""
        return self.rate_min_bytes_per_s or self.rate_bytes_per_s


_KNOWN: Final = (
    Personality(
        name="ait1",
        vendor="SONY",
        product="SDX-400C",
        revision="0501",
        capacity_bytes=35 * _GB,
        rate_bytes_per_s=4 * _MB,
        buffer_bytes=4 * MIB,
        density_code=0x30,
        early_warning_bytes=64 * MIB,
        block_bytes_min=2,
        block_bytes_max=0xFFFFFE,
        granularity_exponent=1,
        default_block_bytes=512,
        strict_mode_allocation=True,
        full_search_s=40.0,
        usb_subclass=0x02,
        drive_buffer_bytes=12 * _MB,
    ),
    Personality(
        name="ait3",
        vendor="SONY",
        product="SDX-700C",
        revision="0203",
        capacity_bytes=100 * _GB,
        rate_bytes_per_s=12 * _MB,
        buffer_bytes=16 * MIB,
        density_code=0x32,
        early_warning_bytes=128 * MIB,
        block_bytes_min=2,
        block_bytes_max=0xFFFFFE,
        granularity_exponent=1,
        default_block_bytes=512,
        strict_mode_allocation=True,
        capacity_log_unit_bytes=KIB,
        full_search_s=54.0,
        drive_buffer_bytes=12 * _MB,
    ),
    Personality(
        name="dat72",
        vendor="HP",
        product="C7438A",
        revision="V312",
        capacity_bytes=36 * _GB,
        rate_bytes_per_s=3_200_000,
        buffer_bytes=8 * MIB,
        density_code=0x47,
        early_warning_bytes=64 * MIB,
        has_long_position=False,
        tells_buffered=False,
        full_search_s=80.0,
        load_s=15.0,
        has_sequential_access_log=True,
    ),
    Personality(
        name="dat160",
        vendor="HP",
        product="DAT160",
        revision="WU88",
        capacity_bytes=80 * _GB,
        rate_bytes_per_s=7 * _MB,
        buffer_bytes=16 * MIB,
        density_code=0x48,
        early_warning_bytes=64 * MIB,
        capacity_log_unit_bytes=KIB,
        tells_buffered=False,
        full_search_s=80.0,
        load_s=15.0,
        has_sequential_access_log=True,
    ),
    Personality(
        name="travan",
        vendor="Seagate",
        product="STT20000U",
        revision="7.A1",
        capacity_bytes=10 * _GB,
        rate_bytes_per_s=_MB,
        buffer_bytes=2 * MIB,
        density_code=0x45,
        early_warning_bytes=32 * MIB,
        block_bytes_min=512,
        block_bytes_max=512,
        granularity_exponent=9,
        default_block_bytes=512,
        fixed_only=True,
        has_locate=False,
        has_long_position=False,
        tells_buffered=False,
        has_tape_alert=False,
        compresses=False,
        wrap_count=108,
        full_search_s=120.0,
        usb_subclass=0x03,
        usb_speed=2,
    ),
    Personality(
        name="slr",
        vendor="TANDBERG",
        product="SLR100",
        revision="0404",
        capacity_bytes=50 * _GB,
        rate_bytes_per_s=5 * _MB,
        buffer_bytes=8 * MIB,
        density_code=0x34,
        early_warning_bytes=64 * MIB,
        block_bytes_min=2,
        block_bytes_max=256 * KIB,
        granularity_exponent=1,
        default_block_bytes=512,
        appends_only=True,
        has_long_position=False,
        wrap_count=24,
        full_search_s=90.0,
        load_s=25.0,
    ),
    Personality(
        name="dlt-v4",
        vendor="QUANTUM",
        product="DLT-V4",
        revision="2800",
        capacity_bytes=160 * _GB,
        rate_bytes_per_s=10 * _MB,
        buffer_bytes=16 * MIB,
        density_code=0x51,
        early_warning_bytes=128 * MIB,
        block_bytes_min=2,
        block_bytes_max=0xFFFFFE,
        granularity_exponent=1,
        wrap_count=112,
        full_search_s=130.0,
        load_s=30.0,
        compression_log_page=0x32,
    ),
    # The portability floor: nothing beyond what every SSC drive has.
    Personality(
        name="plain",
        vendor="GENERIC",
        product="TAPE DRIVE",
        revision="0001",
        capacity_bytes=20 * _GB,
        rate_bytes_per_s=2 * _MB,
        buffer_bytes=MIB,
        density_code=0,
        early_warning_bytes=32 * MIB,
        has_locate=False,
        has_read_position=False,
        has_long_position=False,
        has_tape_alert=False,
        compresses=False,
        reports_class_reset=False,
    ),
    # Linux's software target tgt with a tape, as it answers: hardly more than "plain", and wrong
    # where others tell positions.
    Personality(
        name="tgt",
        vendor="IET",
        product="VIRTUAL-TAPE",
        revision="0001",
        capacity_bytes=20 * _GB,
        rate_bytes_per_s=50 * _MB,
        buffer_bytes=MIB,
        density_code=0,
        early_warning_bytes=32 * MIB,
        block_bytes_min=4,
        block_bytes_max=MIB,
        granularity_exponent=9,
        has_locate=False,
        knows_position=False,
        space_tells=False,
        has_log_pages=False,
        has_tape_alert=False,
        compresses=False,
        bare_early_warning=True,
    ),
    Personality(
        name="lto3",
        vendor="HP",
        product="Ultrium 3-SCSI",
        revision="G63W",
        capacity_bytes=400 * _GB,
        rate_bytes_per_s=80 * _MB,
        buffer_bytes=16 * MIB,
        density_code=0x44,
        early_warning_bytes=256 * MIB,
        buffers_past_early_warning=True,
        has_wide_addresses=True,
        capacity_log_unit_bytes=MIB,
        has_attributes=True,
        wrap_count=44,
        full_search_s=100.0,
        has_sequential_access_log=True,
        compression_log_page=0x32,
        drive_buffer_bytes=64 * _MB,
        rate_min_bytes_per_s=27 * _MB,
    ),
    Personality(
        name="lto5",
        vendor="HP",
        product="Ultrium 5-SCSI",
        revision="Z64D",
        capacity_bytes=1500 * _GB,
        rate_bytes_per_s=140 * _MB,
        buffer_bytes=16 * MIB,
        density_code=0x58,
        early_warning_bytes=512 * MIB,
        buffers_past_early_warning=True,
        has_wide_addresses=True,
        capacity_log_unit_bytes=MIB,
        has_volume_statistics=True,
        has_attributes=True,
        wrap_count=80,
        full_search_s=100.0,
        has_sequential_access_log=True,
        has_device_statistics=True,
        compression_log_page=0x1B,
        drive_buffer_bytes=256 * _MB,
        rate_min_bytes_per_s=40 * _MB,
    ),
    Personality(
        name="lto8",
        vendor="IBM",
        product="ULT3580-HH8",
        revision="N9M1",
        capacity_bytes=12_000 * _GB,
        rate_bytes_per_s=300 * _MB,
        buffer_bytes=16 * MIB,
        density_code=0x5E,
        early_warning_bytes=GIB,
        block_bytes_max=8 * MIB,
        buffers_past_early_warning=True,
        has_wide_addresses=True,
        has_volume_statistics=True,
        has_attributes=True,
        wrap_count=208,
        full_search_s=104.0,
        has_sequential_access_log=True,
        has_device_statistics=True,
        compression_log_page=0x1B,
        drive_buffer_bytes=_GB,
        rate_min_bytes_per_s=112 * _MB,
    ),
    Personality(
        name="lto9",
        vendor="IBM",
        product="ULTRIUM-HH9",
        revision="Q3F5",
        capacity_bytes=18_000 * _GB,
        rate_bytes_per_s=300 * _MB,
        buffer_bytes=16 * MIB,
        density_code=0x60,
        early_warning_bytes=GIB,
        block_bytes_max=8 * MIB,
        buffers_past_early_warning=True,
        has_wide_addresses=True,
        has_volume_statistics=True,
        has_attributes=True,
        wrap_count=280,
        full_search_s=113.0,
        first_load_s=2400.0,
        has_sequential_access_log=True,
        has_device_statistics=True,
        compression_log_page=0x1B,
        drive_buffer_bytes=_GB,
        rate_min_bytes_per_s=177 * _MB,
    ),
)

PERSONALITIES: Final = {personality.name: personality for personality in _KNOWN}
DEFAULT_PERSONALITY: Final = PERSONALITIES["lto5"]


def personality_named(name: str) -> Personality:
    """The personality called `name`. Raises UsageError that lists the names there are."""
    try:
        return PERSONALITIES[name]
    except KeyError:
        known = ", ".join(sorted(PERSONALITIES))
        raise UsageError(f"no personality is called '{name}'; choose one of: {known}") from None
