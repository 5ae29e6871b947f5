"""Finding USB tape drives. Looking around touches nothing but what it has to.

A drive is told by its interface (class 08h, protocol 50h) and by what Linux knows of the SCSI
device behind it, never by vendor and product numbers. Names and types come from sysfs where it has
them, so that listing drives never disturbs one at work, nor takes a disk from under a mounted
filesystem.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import usb.backend.libusb1
import usb.core
import usb.util

from tapefs.errors import NoDrive
from tapefs.usb.bot import INTERFACE_CLASS, INTERFACE_PROTOCOL

SCSI_TYPE_TAPE: Final = 1
REFUSED: Final = frozenset({errno.EACCES, errno.EPERM})
NO_PERMISSION: Final = (
    "no permission to open the drive; run as root, or give yourself access with a udev rule"
)

_SYSFS: Final = Path("/sys")
_LIBUSB: Final = "libusb-1.0.so.0"
_SPEEDS: Final = {1: "low", 2: "full", 3: "high", 4: "super", 5: "super+"}
# libusb_get_string and friends may fail for a dozen reasons; none of them matters for a listing.
_STRING_ERRORS: Final = (usb.core.USBError, ValueError, NotImplementedError, IndexError)


@dataclass(frozen=True, slots=True)
class UsbDriveInfo:
    """A USB device with a Bulk-Only interface that is, or may be, a tape drive.

    `scsi_type` is the peripheral device type as Linux knows it, None where no kernel driver has
    asked. `kernel_driver` is the name of the driver that holds the interface, if known. `problem`
    says why the drive cannot be opened as things stand.
    """

    bus: int
    ports: tuple[int, ...]
    vendor_id: int
    product_id: int
    manufacturer: str | None
    product: str | None
    serial: str | None
    speed: str
    subclass: int
    scsi_type: int | None = None
    kernel_driver: str | None = None
    problem: str | None = None

    @property
    def place(self) -> str:
        """Bus and ports, for example `1.2` or `1.2.4` behind a hub."""
        return ".".join(map(str, (self.bus, *self.ports)))

    @property
    def selector(self) -> str:
        """What names this drive on the command line."""
        return f"usb:{self.serial or self.place}"

    @property
    def title(self) -> str:
        """Maker and model for a person."""
        names = [name for name in (self.manufacturer, self.product) if name]
        return " ".join(names) or f"{self.vendor_id:04x}:{self.product_id:04x}"

    def is_same_as(self, other: UsbDriveInfo) -> bool:
        """Whether this may be the very device that `other` describes, wherever it is now."""
        mine = (self.vendor_id, self.product_id, self.serial)
        return mine == (other.vendor_id, other.product_id, other.serial)

    @property
    def is_surely_no_tape(self) -> bool:
        """Linux knows what it is, and it is something else."""
        return self.scsi_type not in (None, SCSI_TYPE_TAPE)


@dataclass(frozen=True, slots=True)
class UsbDriveList:
    """The drives that were found, and in sentences why there are not more."""

    drives: tuple[UsbDriveInfo, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """Where in a device the Bulk-Only interface is."""

    number: int
    alternate: int
    subclass: int
    configuration: int
    address_in: int
    address_out: int
    max_packet_bytes: int


class _Names(NamedTuple):
    """What the maker says; the fields are called as sysfs calls them."""

    manufacturer: str | None = None
    product: str | None = None
    serial: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    device: Any
    interface: Interface
    info: UsbDriveInfo


def list_drives(backend: Any = None, sysfs: Path | None = None) -> UsbDriveList:  # noqa: ANN401 pyusb has no types
    """Every USB tape drive on this machine. Never raises for what the machine lacks.

    `backend` is a pyusb backend, by default libusb. `sysfs` is consulted for libusb's devices; for
    another backend only when given. Blocks for some milliseconds.
    """
    candidates, reasons = search(backend, sysfs)
    for candidate in candidates:
        usb.util.dispose_resources(candidate.device)
    return UsbDriveList(tuple(candidate.info for candidate in candidates), tuple(reasons))


def search(backend: Any, sysfs: Path | None) -> tuple[list[Candidate], list[str]]:  # noqa: ANN401
    if backend is None:
        sysfs = sysfs or _SYSFS
        backend, reason = _default_backend()
        if backend is None:
            return [], [reason]
    candidates: list[Candidate] = []
    reasons: list[str] = []
    try:
        for device in usb.core.find(find_all=True, backend=backend):
            candidate = _examine(device, sysfs, reasons)
            if candidate is not None:
                candidates.append(candidate)
    except usb.core.USBError as exc:
        reasons.append(f"the USB bus cannot be searched: {exc.strerror or exc}")
    if not candidates and not reasons:
        reasons.append(
            "no USB device offers a Bulk-Only mass storage interface; is the drive plugged in?"
            if sysfs is None or (sysfs / "bus/usb/devices").is_dir()
            else "this machine has no USB, or hides it (no /sys/bus/usb)"
        )
    return candidates, reasons


def _default_backend() -> tuple[Any, str]:
    """libusb's backend, or None and the reason."""
    backend = usb.backend.libusb1.get_backend()
    if backend is not None:
        return backend, ""
    try:
        ctypes.CDLL(_LIBUSB)
    except OSError:
        return None, f"{_LIBUSB} is not installed; install your system's libusb 1.0 package"
    return None, "this machine shows no USB: libusb cannot be started (/dev/bus/usb missing?)"


def _examine(device: Any, sysfs: Path | None, reasons: list[str]) -> Candidate | None:  # noqa: ANN401
    """The candidate in `device`, if any; what speaks against a near miss goes to `reasons`."""
    try:
        interface = _find_interface(device, reasons)
    except _STRING_ERRORS as exc:
        reasons.append(f"device {device.bus}.{device.address} cannot be read: {exc}")
        return None
    if interface is None:
        return None
    info = _describe(device, interface, sysfs)
    if info.is_surely_no_tape:
        reasons.append(f"{info.title} ({info.selector}) is not a tape drive")
        usb.util.dispose_resources(device)
        return None
    return Candidate(device, interface, info)


def _find_interface(device: Any, reasons: list[str]) -> Interface | None:  # noqa: ANN401
    other_protocols: set[int] = set()
    for configuration in device:
        for interface in configuration:
            if interface.bInterfaceClass != INTERFACE_CLASS:
                continue
            if interface.bInterfaceProtocol != INTERFACE_PROTOCOL:
                other_protocols.add(interface.bInterfaceProtocol)
                continue
            into, out = (_bulk_endpoint(interface, way) for way in (0x80, 0x00))
            if into is not None and out is not None:
                return Interface(
                    interface.bInterfaceNumber,
                    interface.bAlternateSetting,
                    interface.bInterfaceSubClass,
                    configuration.bConfigurationValue,
                    into.bEndpointAddress,
                    out.bEndpointAddress,
                    into.wMaxPacketSize & 0x7FF,
                )
    if other_protocols:
        spoken = ", ".join(f"{protocol:02X}h" for protocol in sorted(other_protocols))
        reasons.append(
            f"device {device.bus}.{device.address} speaks mass storage protocol {spoken}, "
            f"tapefs only {INTERFACE_PROTOCOL:02X}h (Bulk-Only)"
        )
    return None


def _bulk_endpoint(interface: Any, way: int) -> Any:  # noqa: ANN401
    for endpoint in interface:
        if endpoint.bmAttributes & 3 == 2 and endpoint.bEndpointAddress & 0x80 == way:
            return endpoint
    return None


def _describe(device: Any, interface: Interface, sysfs: Path | None) -> UsbDriveInfo:  # noqa: ANN401
    ports = tuple(device.port_numbers or ())
    scsi_type = kernel_driver = None
    names = _Names()
    if sysfs is not None:
        place = f"{device.bus}-{'.'.join(map(str, ports))}"
        home = sysfs / "bus/usb/devices" / place
        names = _Names(*(_text(home / name) for name in _Names._fields))
        own = home.with_name(f"{place}:{interface.configuration}.{interface.number}")
        with suppress(OSError):
            kernel_driver = Path(os.readlink(own / "driver")).name
        scsi_type = _scsi_type(own)
    problem = None
    if not any(names):
        names, problem = _strings(device)
    return UsbDriveInfo(
        bus=device.bus,
        ports=ports,
        vendor_id=device.idVendor,
        product_id=device.idProduct,
        manufacturer=names.manufacturer,
        product=names.product,
        serial=names.serial,
        speed=_SPEEDS.get(device.speed, "unknown"),
        subclass=interface.subclass,
        scsi_type=scsi_type,
        kernel_driver=kernel_driver,
        problem=problem,
    )


def _scsi_type(interface_directory: Path) -> int | None:
    """Peripheral device type of the first logical unit that Linux found; 1 is a tape."""
    for path in sorted(interface_directory.glob("host*/target*/*/type")):
        text = _text(path)
        if text and text.isdecimal():
            return int(text)
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _strings(device: Any) -> tuple[_Names, str | None]:  # noqa: ANN401
    """Maker, model and serial number from the device itself, and what prevented it."""
    try:
        language = usb.util.get_langids(device)[0]
        indexes = (device.iManufacturer, device.iProduct, device.iSerialNumber)
        return _Names(*(usb.util.get_string(device, each, language) for each in indexes)), None
    except usb.core.USBError as exc:
        return _Names(), NO_PERMISSION if exc.errno in REFUSED else None
    except _STRING_ERRORS:
        return _Names(), None


def choose(
    selector: str,
    candidates: list[Candidate],
    reasons: list[str],
    known: UsbDriveInfo | None,
) -> Candidate:
    kind, _, wanted = selector.partition(":")
    if kind != "usb":
        raise NoDrive(f"'{selector}' names no USB drive; write usb, usb:SERIAL or usb:BUS.PORT")
    same = [each for each in candidates if known is None or each.info.is_same_as(known)]
    if known is not None and known.serial and len(same) == 1:
        return same[0]
    if wanted:
        matching = [each for each in same if wanted in (each.info.serial, each.info.place)]
    else:
        # Without a name nothing is taken from a kernel driver that is not known to drive a tape.
        matching = [
            each
            for each in same
            if each.info.scsi_type == SCSI_TYPE_TAPE or each.info.kernel_driver is None
        ]
    if len(matching) == 1:
        return matching[0]
    for each in candidates:
        usb.util.dispose_resources(each.device)
    if matching:
        names = ", ".join(f"usb:{each.info.place} ({each.info.title})" for each in matching)
        raise NoDrive(f"more than one drive answers to '{selector}'; choose one: {names}")
    others = [f"{each.info.title} is at usb:{each.info.place}" for each in candidates]
    asked = f"{known.title} ({known.selector})" if known else f"'{selector}'"
    raise NoDrive(f"no drive answers to {asked}: {'; '.join([*others, *reasons])}")
