"""The pipes of one USB drive: only pyusb, only thread.

libusb's errors become tapefs's in one place, `_wire_errors`.
"""

from __future__ import annotations

import ctypes
import errno
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
import usb.core
import usb.util

from tapefs.errors import DriveBusy, DriveGone, NoDrive
from tapefs.usb.bot import ATAPI_TAPE_SUBCLASS, LUN_MAX, Pipe, WireFailed
from tapefs.usb.discovery import NO_PERMISSION, REFUSED, Candidate, UsbDriveInfo, choose, search
from tapefs.usb.transport import EndpointStalled, TransferOverflow, TransferTimeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.scsi.completion import DataBuffer

T = TypeVar("T")

_CLASS_RESET_TIMEOUT_S: Final = 5.0
# As long as Linux gives it.
_MAX_LUN_TIMEOUT_S: Final = 10.0
_TIMEOUT_MS_MAX: Final = 0x7FFF_FFFF
_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.ESHUTDOWN})


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
    candidates, reasons = search(backend, sysfs)
    chosen = choose(selector, candidates, reasons, known)
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

    def __init__(self, candidate: Candidate, limiter: trio.CapacityLimiter) -> None:
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

    def send(self, data: DataBuffer, timeout_s: float) -> int:
        """Write `data` to the bulk OUT endpoint in one transfer, without copying it."""
        with _wire_errors:
            count = int(
                self._device.write(self._interface.address_out, _as_array(data), _ms(timeout_s))
            )
        if count < len(data):
            # libusb reports a timeout after the first bytes as nothing but a short count.
            raise TransferTimeout(f"only {count} of {len(data)} bytes went out in time")
        return count

    def receive(self, into: DataBuffer, timeout_s: float) -> int:
        """Fill `into` from the bulk IN endpoint in one transfer; returns the bytes received."""
        with _wire_errors:
            address = self._interface.address_in
            return int(self._device.read(address, _as_array(into), _ms(timeout_s)))

    def clear_halt(self, pipe: Pipe) -> None:
        """Clear a halted endpoint, and with it the data toggle on both sides."""
        address = self._interface.address_in if pipe is Pipe.IN else self._interface.address_out
        with _wire_errors:
            self._device.clear_halt(address)

    def class_reset(self) -> None:
        """Bulk-Only Mass Storage Reset (BOT 1.0 §3.1)."""
        with _wire_errors:
            self._device.ctrl_transfer(
                0x21, 0xFF, 0, self._interface.number, None, _ms(_CLASS_RESET_TIMEOUT_S)
            )

    def port_reset(self) -> None:
        """Reset the port and take the interface again: the kernel's driver may have been faster.

        Raises DriveGone when the device came back as another one.
        """
        with _wire_errors:
            self._device.reset()
        self._take()

    def max_lun(self) -> int:
        """The highest logical unit number (BOT 1.0 §3.2).

        0 where a drive does not answer, refuses (it may, with one unit), or answers rubbish. An
        ATAPI tape drive is not asked: it has one unit, as Linux knows.
        """
        if self.subclass == ATAPI_TAPE_SUBCLASS:
            return 0
        answer = array("B", bytes(1))
        try:
            with _wire_errors:
                count = self._device.ctrl_transfer(
                    0xA1, 0xFE, 0, self._interface.number, answer, _ms(_MAX_LUN_TIMEOUT_S)
                )
        except WireFailed:
            return 0
        return answer[0] if count == 1 and answer[0] <= LUN_MAX else 0

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
            with _wire_errors:
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


class _WireErrors:
    """libusb's failures as tapefs's errors. Without state: one serves all transfers."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, usb.core.USBError):
            raise _translated(error) from error
        if isinstance(error, NotImplementedError):
            raise WireFailed("libusb cannot do this on this system") from error


_wire_errors: Final = _WireErrors()


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
    if number in REFUSED:
        return NoDrive(NO_PERMISSION)
    if number == errno.ENOMEM:
        return WireFailed(
            "the kernel has no memory for a transfer of this size; raise "
            "/sys/module/usbcore/parameters/usbfs_memory_mb"
        )
    return WireFailed(f"USB error: {error.strerror or error}")


def _ms(timeout_s: float) -> int:
    # 0 would mean for ever.
    return max(1, min(int(timeout_s * 1000), _TIMEOUT_MS_MAX))


class _Window(array):  # type: ignore[type-arg]  # cannot be subscripted before Python 3.12
    """An array to pyusb, and to libusb, which is told what `buffer_info` says, other memory."""

    def __init__(self, _typecode: str) -> None:
        """Without any bytes; `show` comes next."""
        self._view = memoryview(b"")
        self._address = 0

    def show(self, view: memoryview) -> None:
        """Stand for `view`, which can be written to: libusb's address of it goes without const."""
        self._view = view  # keeps the memory where it is
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(view))

    def buffer_info(self) -> tuple[int, int]:
        """Where the bytes are, and how many."""
        return self._address, len(self._view)


def _as_array(data: DataBuffer) -> array[int]:
    """pyusb takes arrays; a memoryview it would copy byte by byte, at 22 MB/s."""
    if isinstance(data, memoryview):
        window = _Window("B")
        window.show(data)
        return window
    return data
