"""The USB stack: which drives there are, and the pipes of one of them. Only pyusb, only thread.

A drive is told by its interface (class 08h, protocol 50h) and by what Linux knows of the SCSI
device behind it, never by vendor and product numbers. Looking around touches nothing: names and
types come from sysfs where it has them, so that listing drives never disturbs one at work, nor
takes a disk from under a mounted filesystem.

libusb's errors become tapefs's in one place, `_wire_errors`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import trio
import usb.backend.libusb1
import usb.core
import usb.util

from tapefs.errors import DriveBusy, DriveGone, NoDrive
from tapefs.usb.bot import INTERFACE_CLASS, INTERFACE_PROTOCOL, Pipe, WireFailed
from tapefs.usb.transport import EndpointStalled, TransferOverflow, TransferTimeout

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator

T = TypeVar("T")

SCSI_TYPE_TAPE: Final = 1

_SYSFS: Final = Path("/sys")
_LIBUSB: Final = "libusb-1.0.so.0"
_CLASS_RESET_TIMEOUT_S: Final = 5.0
_TIMEOUT_MS_MAX: Final = 0x7FFF_FFFF
_SPEEDS: Final = {1: "low", 2: "full", 3: "high", 4: "super", 5: "super+"}
_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.ESHUTDOWN})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM})
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
class _Interface:
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
class _Candidate:
    device: Any
    interface: _Interface
    info: UsbDriveInfo


def list_drives(backend: Any = None, sysfs: Path | None = None) -> UsbDriveList:  # noqa: ANN401 pyusb has no types
    """Every USB tape drive on this machine. Never raises for what the machine lacks.

    `backend` is a pyusb backend, by default libusb. `sysfs` is consulted for libusb's devices; for
    another backend only when given. Blocks for some milliseconds.
    """
    candidates, reasons = _search(backend, sysfs)
    for candidate in candidates:
        usb.util.dispose_resources(candidate.device)
    return UsbDriveList(tuple(candidate.info for candidate in candidates), tuple(reasons))


def open_endpoints(
    selector: str,
    backend: Any = None,  # noqa: ANN401 pyusb has no types
    sysfs: Path | None = None,
    limiter: trio.CapacityLimiter | None = None,
    known: UsbDriveInfo | None = None,
) -> UsbEndpoints:
    """Take the drive named `usb` (the only one), `usb:SERIAL` or `usb:BUS.PORT`. Blocks briefly.

    With `known`, only the same drive again, which may be at another place if its serial number
    tells it; others are not touched. The kernel's driver is detached until `UsbEndpoints.close`.
    `limiter` bounds the calls that may be on the wire at one time; anything but its default of 1
    is for showing what that breaks.

    Raises NoDrive (none, or more than one answers to the name, or it may not be opened), DriveBusy
    (another program holds it), DriveGone, WireFailed.
    """
    candidates, reasons = _search(backend, sysfs)
    chosen = _choose(selector, candidates, reasons, known)
    for candidate in candidates:
        if candidate is not chosen:
            usb.util.dispose_resources(candidate.device)
    try:
        return UsbEndpoints(chosen, limiter or trio.CapacityLimiter(1))
    except BaseException:
        usb.util.dispose_resources(chosen.device)
        raise


class UsbEndpoints:
    """The claimed interface of one drive; satisfies `tapefs.usb.transport.Endpoints`.

    Everything but `run` blocks and is meant to be called from the thread of `run`.
    """

    def __init__(self, candidate: _Candidate, limiter: trio.CapacityLimiter) -> None:
        """Not for direct use: `open_endpoints` makes these."""
        self.info = candidate.info
        self._device = candidate.device
        self._interface = candidate.interface
        self._limiter = limiter
        self._detached = False
        self._take()

    @property
    def subclass(self) -> int:
        """bInterfaceSubClass: how CDBs are packed."""
        return self._interface.subclass

    @property
    def max_packet_bytes(self) -> int:
        """wMaxPacketSize of the bulk IN endpoint."""
        return self._interface.max_packet_bytes

    def send(self, data: array[int], timeout_s: float) -> int:
        """Write `data` to the bulk OUT endpoint in one transfer, without copying it."""
        with _wire_errors():
            count = int(self._device.write(self._interface.address_out, data, _ms(timeout_s)))
        if count < len(data):
            # libusb reports a timeout after the first bytes as nothing but a short count.
            raise TransferTimeout(f"only {count} of {len(data)} bytes went out in time")
        return count

    def receive(self, into: array[int], timeout_s: float) -> int:
        """Fill `into` from the bulk IN endpoint in one transfer; returns the bytes received."""
        with _wire_errors():
            return int(self._device.read(self._interface.address_in, into, _ms(timeout_s)))

    def clear_halt(self, pipe: Pipe) -> None:
        """Clear a halted endpoint, and with it the data toggle on both sides."""
        address = self._interface.address_in if pipe is Pipe.IN else self._interface.address_out
        with _wire_errors():
            self._device.clear_halt(address)

    def class_reset(self) -> None:
        """Bulk-Only Mass Storage Reset (BOT 1.0 §3.1)."""
        with _wire_errors():
            self._device.ctrl_transfer(
                0x21, 0xFF, 0, self._interface.number, None, _ms(_CLASS_RESET_TIMEOUT_S)
            )

    def port_reset(self) -> None:
        """Reset the port and take the interface again: the kernel's driver may have been faster.

        Raises DriveGone when the device came back as another one.
        """
        with _wire_errors():
            self._device.reset()
        self._take()

    def close(self) -> None:
        """Give the interface back, to the kernel's driver if it had it before. Never fails."""
        errors = (usb.core.USBError, NotImplementedError)
        with suppress(*errors):
            usb.util.release_interface(self._device, self._interface.number)
        if self._detached:
            with suppress(*errors):
                self._device.attach_kernel_driver(self._interface.number)
        with suppress(*errors):
            usb.util.dispose_resources(self._device)

    async def run(self, work: Callable[[], T]) -> T:
        """Call `work` in the worker thread; once begun, it is waited for whatever happens."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def _take(self) -> None:
        number = self._interface.number
        try:
            with _wire_errors():
                self._detach(number)
                usb.util.claim_interface(self._device, number)
                if self._interface.alternate:
                    self._device.set_interface_altsetting(number, self._interface.alternate)
        except DriveBusy as exc:
            raise DriveBusy(
                f"{self.info.title} ({self.info.selector}) is in use by another program; "
                "stop that program, or unmount the tape there"
            ) from exc

    def _detach(self, number: int) -> None:
        # NotImplementedError: a system without kernel drivers to detach.
        with suppress(NotImplementedError):
            if self._device.is_kernel_driver_active(number):
                self._device.detach_kernel_driver(number)
                self._detached = True


@contextmanager
def _wire_errors() -> Iterator[None]:
    """libusb's failures as tapefs's errors."""
    try:
        yield
    except usb.core.USBError as exc:
        raise _translated(exc) from exc
    except NotImplementedError as exc:
        raise WireFailed("libusb cannot do this on this system") from exc


def _translated(error: usb.core.USBError) -> Exception:
    number = error.errno
    if number in _GONE:
        return DriveGone("the drive is not connected any more; plug it in again")
    if number == errno.EPIPE:
        return EndpointStalled("the drive stalled")
    if number == errno.ETIMEDOUT or isinstance(error, usb.core.USBTimeoutError):
        return TransferTimeout("the drive does not answer")
    if number == errno.EOVERFLOW:
        return TransferOverflow("the drive sent more than it was asked for")
    if number == errno.EBUSY:
        return DriveBusy("the drive is in use")
    if number in _REFUSED:
        return NoDrive(_NO_PERMISSION)
    if number == errno.ENOMEM:
        return WireFailed(
            "the kernel has no memory for a transfer of this size; raise "
            "/sys/module/usbcore/parameters/usbfs_memory_mb"
        )
    return WireFailed(f"USB error: {error.strerror or error}")


_NO_PERMISSION: Final = (
    "no permission to open the drive; run as root, or give yourself access with a udev rule"
)


def _ms(timeout_s: float) -> int:
    # 0 would mean for ever.
    return max(1, min(int(timeout_s * 1000), _TIMEOUT_MS_MAX))


# Finding drives.


def _search(backend: Any, sysfs: Path | None) -> tuple[list[_Candidate], list[str]]:  # noqa: ANN401
    if backend is None:
        sysfs = sysfs or _SYSFS
        backend, reason = _default_backend()
        if backend is None:
            return [], [reason]
    candidates: list[_Candidate] = []
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


def _examine(device: Any, sysfs: Path | None, reasons: list[str]) -> _Candidate | None:  # noqa: ANN401
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
    return _Candidate(device, interface, info)


def _find_interface(device: Any, reasons: list[str]) -> _Interface | None:  # noqa: ANN401
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
                return _Interface(
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


def _describe(device: Any, interface: _Interface, sysfs: Path | None) -> UsbDriveInfo:  # noqa: ANN401
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
        return _Names(), _NO_PERMISSION if exc.errno in _REFUSED else None
    except _STRING_ERRORS:
        return _Names(), None


def _choose(
    selector: str,
    candidates: list[_Candidate],
    reasons: list[str],
    known: UsbDriveInfo | None,
) -> _Candidate:
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
