"""Parameter data of SCSI commands, as bytes and dataclasses, both ways.

`unpack` takes what a device sent, cut to the bytes that arrived, and raises MalformedData (from
`tapefs.errors`) when it is too short or contradicts itself, never anything else: the bytes come
from outside. `pack` is what a device would send; a value that does not fit its field raises
OverflowError there, a bug of the caller. Layouts are those of SPC-4 and SSC-4; numbers are
big-endian. Log pages are in `tapefs.scsi.log`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from tapefs.errors import MalformedData as MalformedData
from tapefs.scsi.cdb import INQUIRY_BYTES, READ_BLOCK_LIMITS_BYTES
from tapefs.scsi.log import LogPage as LogPage
from tapefs.scsi.log import TapeAlert as TapeAlert
from tapefs.scsi.log import TapeCapacity as TapeCapacity

TAPE_DEVICE_TYPE: Final = 0x01
# What the 24-bit length of READ(6) and WRITE(6) can say.
BLOCK_BYTES_MAX: Final = 0xFFFFFF

Bytes = bytes | memoryview


def _checked(data: Bytes, size_bytes: int, what: str) -> bytes:
    """`data` as bytes, at least `size_bytes` long. Raises MalformedData."""
    if len(data) < size_bytes:
        raise MalformedData(
            f"the drive's {what} has {len(data)} bytes instead of {size_bytes};"
            " power-cycle the drive and try again"
        )
    return bytes(data)


def _text(field: bytes) -> str:
    """Printable ASCII of a space-padded field; everything else becomes '?'."""
    text = field.rstrip(b"\0 ").decode("ascii", "replace")
    return "".join(c if " " <= c <= "~" else "?" for c in text).strip()


def _padded(text: str, size_bytes: int) -> bytes:
    field = text.encode("ascii")
    if len(field) > size_bytes:
        raise OverflowError(f"'{text}' does not fit {size_bytes} bytes")
    return field.ljust(size_bytes)


@dataclass(frozen=True, slots=True)
class StandardInquiry:
    """Standard INQUIRY data, the 36 bytes every device has (SPC-4)."""

    vendor: str
    product: str
    revision: str
    device_type: int = TAPE_DEVICE_TYPE
    qualifier: int = 0
    removable: bool = True
    version: int = 5

    def pack(self) -> bytes:
        head = struct.pack(
            ">BBBBBBBB",
            self.qualifier << 5 | self.device_type,
            self.removable << 7,
            self.version,
            0x02,
            INQUIRY_BYTES - 5,
            0,
            0,
            0,
        )
        names = _padded(self.vendor, 8) + _padded(self.product, 16) + _padded(self.revision, 4)
        return head + names

    @classmethod
    def unpack(cls, data: Bytes) -> StandardInquiry:
        """Raises MalformedData below 36 bytes."""
        raw = _checked(data, INQUIRY_BYTES, "INQUIRY data")
        return cls(
            vendor=_text(raw[8:16]),
            product=_text(raw[16:32]),
            revision=_text(raw[32:36]),
            device_type=raw[0] & 0x1F,
            qualifier=raw[0] >> 5,
            removable=bool(raw[1] & 0x80),
            version=raw[2],
        )


def _pack_vital_page(page: int, body: bytes) -> bytes:
    return bytes((TAPE_DEVICE_TYPE, page)) + len(body).to_bytes(2, "big") + body


def _unpack_vital_page(data: Bytes, page: int) -> bytes:
    """Body of a vital product data page, cut where the page says it ends."""
    raw = _checked(data, 4, f"vital product data page {page:02X}h")
    if raw[1] != page:
        raise MalformedData(
            f"the drive answered with vital product data page {raw[1]:02X}h instead of"
            f" {page:02X}h; power-cycle the drive and try again"
        )
    return raw[4 : 4 + int.from_bytes(raw[2:4], "big")]


@dataclass(frozen=True, slots=True)
class SupportedPages:
    """Vital product data page 00h: which of these pages there are (SPC-4)."""

    pages: tuple[int, ...]

    def pack(self) -> bytes:
        return _pack_vital_page(0x00, bytes(self.pages))

    @classmethod
    def unpack(cls, data: Bytes) -> SupportedPages:
        """Raises MalformedData when this is not page 00h."""
        return cls(tuple(_unpack_vital_page(data, 0x00)))


@dataclass(frozen=True, slots=True)
class UnitSerialNumber:
    """Vital product data page 80h: the drive's serial number (SPC-4)."""

    serial: str

    def pack(self) -> bytes:
        return _pack_vital_page(0x80, self.serial.encode("ascii"))

    @classmethod
    def unpack(cls, data: Bytes) -> UnitSerialNumber:
        """Raises MalformedData when this is not page 80h."""
        return cls(_text(_unpack_vital_page(data, 0x80)))


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """READ BLOCK LIMITS data (SSC-4): lengths of a block the drive can write, in bytes."""

    minimum_bytes: int
    maximum_bytes: int
    # Lengths are multiples of 2 to this power.
    granularity: int = 0

    @property
    def fixed_only(self) -> bool:
        """The drive knows one block length only."""
        return self.minimum_bytes == self.maximum_bytes

    def allow(self, block_bytes: int) -> bool:
        """Whether one block may have this length. A maximum of 0 means that there is no limit."""
        maximum_bytes = self.maximum_bytes or BLOCK_BYTES_MAX
        fits = self.minimum_bytes <= block_bytes <= maximum_bytes
        return fits and block_bytes % (1 << self.granularity) == 0

    def pack(self) -> bytes:
        head = self.granularity.to_bytes(1, "big") + self.maximum_bytes.to_bytes(3, "big")
        return head + self.minimum_bytes.to_bytes(2, "big")

    @classmethod
    def unpack(cls, data: Bytes) -> BlockLimits:
        """Raises MalformedData below 6 bytes, or when the minimum exceeds the maximum."""
        raw = _checked(data, READ_BLOCK_LIMITS_BYTES, "READ BLOCK LIMITS data")
        maximum_bytes = int.from_bytes(raw[1:4], "big")
        minimum_bytes = int.from_bytes(raw[4:6], "big")
        if maximum_bytes and minimum_bytes > maximum_bytes:
            raise MalformedData(
                f"the drive's block limits are {minimum_bytes} to {maximum_bytes} bytes, which"
                " cannot be; power-cycle the drive and try again"
            )
        return cls(minimum_bytes, maximum_bytes, raw[0] & 0x1F)


@dataclass(frozen=True, slots=True)
class BlockDescriptor:
    """The 8-byte mode parameter block descriptor (SSC-4). `block_bytes` 0: variable length."""

    density: int = 0
    block_count: int = 0
    block_bytes: int = 0

    def pack(self) -> bytes:
        count = self.block_count.to_bytes(3, "big")
        return bytes((self.density,)) + count + b"\0" + self.block_bytes.to_bytes(3, "big")

    @classmethod
    def unpack(cls, data: Bytes) -> BlockDescriptor:
        """Raises MalformedData below 8 bytes."""
        raw = _checked(data, 8, "mode block descriptor")
        return cls(raw[0], int.from_bytes(raw[1:4], "big"), int.from_bytes(raw[5:8], "big"))


@dataclass(frozen=True, slots=True)
class ModeParameters:
    """A mode parameter list: header, at most one block descriptor, pages (SPC-4, SSC-4).

    `buffered_mode` 0 makes every write wait for the medium; 1 is what streams.
    """

    medium_type: int = 0
    write_protected: bool = False
    buffered_mode: int = 0
    speed: int = 0
    descriptor: BlockDescriptor | None = None
    pages: bytes = b""

    def pack(self, *, ten: bool = False, select: bool = False) -> bytes:
        """With a 4-byte header, or with the 8-byte one when `ten`.

        `select`: as a host sends it, without the fields that are reserved in that direction.
        """
        descriptor = self.descriptor.pack() if self.descriptor else b""
        specific = (self.write_protected and not select) << 7 | self.buffered_mode << 4 | self.speed
        body_bytes = len(descriptor) + len(self.pages)
        if ten:
            length = 0 if select else 6 + body_bytes
            header = struct.pack(">HBBHH", length, self.medium_type, specific, 0, len(descriptor))
        else:
            length = 0 if select else 3 + body_bytes
            header = struct.pack(">BBBB", length, self.medium_type, specific, len(descriptor))
        return header + descriptor + self.pages

    @classmethod
    def unpack(cls, data: Bytes, *, ten: bool = False, select: bool = False) -> ModeParameters:
        """Raises MalformedData when header or descriptor are incomplete.

        Unless `select`, bytes behind the header's own length are ignored; pages may be cut short
        by the allocation length of the command.
        """
        header_bytes = 8 if ten else 4
        raw = _checked(data, header_bytes, "mode parameter header")
        if ten:
            length, medium_type, specific, _, descriptor_bytes = struct.unpack(">HBBHH", raw[:8])
        else:
            length, medium_type, specific, descriptor_bytes = raw[:4]
        if not select:
            raw = raw[: length + (2 if ten else 1)]
        descriptor = None
        if descriptor_bytes:
            descriptor = BlockDescriptor.unpack(raw[header_bytes : header_bytes + descriptor_bytes])
        return cls(
            medium_type=medium_type,
            write_protected=bool(specific & 0x80),
            buffered_mode=specific >> 4 & 7,
            speed=specific & 0x0F,
            descriptor=descriptor,
            pages=raw[header_bytes + descriptor_bytes :],
        )

    def page(self, code: int, subpage: int = 0) -> bytes | None:
        """One complete page with its header, or None when it is not (wholly) there."""
        rest = self.pages
        while len(rest) >= 2:
            has_subpage = rest[0] & 0x40
            size_bytes = 4 + int.from_bytes(rest[2:4], "big") if has_subpage else 2 + rest[1]
            found = (rest[0] & 0x3F, rest[1] if has_subpage else 0)
            if found == (code, subpage):
                return rest[:size_bytes] if len(rest) >= size_bytes else None
            rest = rest[size_bytes:]
        return None


@dataclass(frozen=True, slots=True)
class DataCompressionPage:
    """Mode page 0Fh (SSC-4, Data Compression)."""

    enabled: bool = False
    capable: bool = False
    decompression: bool = True
    algorithm: int = 0

    def pack(self) -> bytes:
        return struct.pack(
            ">BBBBII4x",
            0x0F,
            14,
            self.enabled << 7 | self.capable << 6,
            self.decompression << 7,
            self.algorithm,
            self.algorithm,
        )

    @classmethod
    def unpack(cls, data: Bytes) -> DataCompressionPage:
        """Raises MalformedData below 16 bytes."""
        raw = _checked(data, 16, "data compression page")
        return cls(
            enabled=bool(raw[2] & 0x80),
            capable=bool(raw[2] & 0x40),
            decompression=bool(raw[3] & 0x80),
            algorithm=int.from_bytes(raw[4:8], "big"),
        )


@dataclass(frozen=True, slots=True)
class DeviceConfigurationPage:
    """Mode page 10h (SSC-4, Device Configuration), the fields that matter to a host."""

    active_partition: int = 0
    # After this many tenths of a second the drive writes a part-filled buffer; 0: never.
    write_delay_100ms: int = 0
    block_identifiers: bool = True
    early_warning_on_read: bool = False
    synchronize_at_early_warning: bool = True
    software_write_protect: bool = False
    compression_algorithm: int = 0

    def pack(self) -> bytes:
        flags = self.block_identifiers << 6 | self.early_warning_on_read
        end = self.synchronize_at_early_warning << 3 | self.software_write_protect << 2
        return struct.pack(
            ">BBBBBBHBBBBBBBB",
            0x10,
            14,
            0,
            self.active_partition,
            0,
            0,
            self.write_delay_100ms,
            flags,
            0,
            end,
            0,
            0,
            0,
            self.compression_algorithm,
            0,
        )

    @classmethod
    def unpack(cls, data: Bytes) -> DeviceConfigurationPage:
        """Raises MalformedData below 16 bytes."""
        raw = _checked(data, 16, "device configuration page")
        return cls(
            active_partition=raw[3],
            write_delay_100ms=int.from_bytes(raw[6:8], "big"),
            block_identifiers=bool(raw[8] & 0x40),
            early_warning_on_read=bool(raw[8] & 0x01),
            synchronize_at_early_warning=bool(raw[10] & 0x08),
            software_write_protect=bool(raw[10] & 0x04),
            compression_algorithm=raw[14],
        )


@dataclass(frozen=True, slots=True)
class ShortPosition:
    """READ POSITION, short form, 20 bytes (SSC-4).

    `block` is what the next transfer with the host would be, counting records and filemarks from
    the beginning of the partition; `last_block` what the next transfer with the medium would be.
    Both mean nothing when `unknown`. Block 0 without `beginning` is unknown too: targets that
    cannot tell answer with zeros. `end`: between early warning and the end of the medium.
    """

    block: int = 0
    last_block: int = 0
    partition: int = 0
    beginning: bool = False
    end: bool = False
    buffered_blocks: int | None = None
    buffered_bytes: int | None = None
    unknown: bool = False
    error: bool = False
    programmable_early_warning: bool = False

    def pack(self) -> bytes:
        flags = (
            self.beginning << 7
            | self.end << 6
            | (self.buffered_blocks is None) << 5
            | (self.buffered_bytes is None) << 4
            | self.unknown << 2
            | self.error << 1
            | self.programmable_early_warning
        )
        head = struct.pack(">BBxxII", flags, self.partition, self.block, self.last_block)
        return head + struct.pack(">II", self.buffered_blocks or 0, self.buffered_bytes or 0)

    @classmethod
    def unpack(cls, data: Bytes) -> ShortPosition:
        """Raises MalformedData below 20 bytes."""
        raw = _checked(data, 20, "READ POSITION data")
        flags, partition, block, last_block, blocks, size_bytes = struct.unpack(
            ">BBxxIIII", raw[:20]
        )
        return cls(
            block=block,
            last_block=last_block,
            partition=partition,
            beginning=bool(flags & 0x80),
            end=bool(flags & 0x40),
            buffered_blocks=None if flags & 0x20 else blocks & 0xFFFFFF,
            buffered_bytes=None if flags & 0x10 else size_bytes,
            unknown=bool(flags & 0x04) or not (block or flags & 0x80),
            error=bool(flags & 0x02),
            programmable_early_warning=bool(flags & 0x01),
        )


@dataclass(frozen=True, slots=True)
class LongPosition:
    """READ POSITION, long form, 32 bytes (SSC-4). None: the drive does not know that number.

    Block 0 without `beginning` is no position, as in the short form.
    """

    block: int | None = None
    file: int | None = None
    partition: int = 0
    beginning: bool = False
    end: bool = False
    programmable_early_warning: bool = False

    def pack(self) -> bytes:
        flags = (
            self.beginning << 7
            | self.end << 6
            | (self.file is None) << 3
            | (self.block is None) << 2
            | self.programmable_early_warning
        )
        numbers = (self.partition, self.block or 0, self.file or 0)
        return struct.pack(">B3xIQQ8x", flags, *numbers)

    @classmethod
    def unpack(cls, data: Bytes) -> LongPosition:
        """Raises MalformedData below 32 bytes."""
        raw = _checked(data, 32, "READ POSITION data")
        flags, partition, block, file = struct.unpack(">B3xIQQ8x", raw[:32])
        unknown = flags & 0x04 or not (block or flags & 0x80)
        return cls(
            block=None if unknown else block,
            file=None if unknown or flags & 0x08 else file,
            partition=partition,
            beginning=bool(flags & 0x80),
            end=bool(flags & 0x40),
            programmable_early_warning=bool(flags & 0x01),
        )
