"""Finding and taking a drive: every lack of the machine is an answer, no disk is ever taken."""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from typing import TYPE_CHECKING, Any

import pytest
import trio
import usb.backend.libusb1
import usb.core
from tape_server import TapeServer
from usb_rig import Bus

from tapefs.emulator.fault_queue import FaultPoint
from tapefs.emulator.usb import EmulatedUsbBackend, UsbIdentity
from tapefs.emulator.wire_faults import FaultEffect, WireFault
from tapefs.errors import DriveBusy, DriveGone, NoDrive, TapefsError
from tapefs.usb.bot import Pipe, WireFailed
from tapefs.usb.device import open_endpoints
from tapefs.usb.discovery import list_drives
from tapefs.usb.transport import EndpointStalled, TransferOverflow, TransferTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def backend(**options: Any) -> EmulatedUsbBackend:
    return EmulatedUsbBackend(TapeServer(), **options)


class Uas(EmulatedUsbBackend):
    """A device that speaks UAS only."""

    def get_interface_descriptor(self, *where: Any) -> Any:
        descriptor: Any = super().get_interface_descriptor(*where)
        descriptor.bInterfaceProtocol = 0x62
        return descriptor


class Locked(EmulatedUsbBackend):
    """A device node that this user may not open."""

    def open_device(self, _dev: str) -> Any:
        raise usb.core.USBError("Access denied", -3, errno.EACCES)


def sysfs_tree(
    root: Path, place: str = "1-1", scsi_type: int | None = None, driver: str | None = None
) -> Path:
    home = root / "bus/usb/devices" / place
    home.mkdir(parents=True)
    for name, text in (("manufacturer", "SONY"), ("product", "AIT"), ("serial", "00042")):
        (home / name).write_text(text + "\n")
    own = home.with_name(f"{place}:1.0")
    own.mkdir()
    if driver:
        os.symlink(f"../../drivers/{driver}", own / "driver")
    if scsi_type is not None:
        unit = own / "host3/target3:0:0/3:0:0:0"
        unit.mkdir(parents=True)
        (unit / "type").write_text(f"{scsi_type}\n")
    return root


# Listing.


def test_this_machine_gives_an_answer_whatever_it_has() -> None:
    found = list_drives()
    assert found.drives or found.reasons


def test_a_machine_without_usb_has_no_drives_and_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = Bus()
    monkeypatch.setattr(usb.backend.libusb1, "get_backend", lambda: empty)
    found = list_drives(sysfs=tmp_path)
    assert found.drives == ()
    assert "no USB" in found.reasons[0]
    with pytest.raises(NoDrive, match="no USB"):
        open_endpoints("usb", sysfs=tmp_path)


def test_libusb_missing_or_unusable_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(usb.backend.libusb1, "_lib_object", None)
    monkeypatch.setattr(usb.backend.libusb1, "_load_library", _no_library)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: None)
    found = list_drives()
    assert (found.drives, len(found.reasons)) == ((), 1)
    assert "cannot be started" in found.reasons[0]
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert "not installed" in list_drives().reasons[0]
    with pytest.raises(NoDrive, match="not installed"):
        open_endpoints("usb")


def _no_library(**_: Any) -> None:
    raise RuntimeError("LIBUSB_ERROR_OTHER")  # pyusb logs this with its traceback, or would


def test_a_bus_that_cannot_be_searched_is_a_reason() -> None:
    class Broken(EmulatedUsbBackend):
        def enumerate_devices(self) -> Iterator[str]:
            raise usb.core.USBError("Input/Output Error", -1, errno.EIO)

    found = list_drives(Broken(TapeServer()))
    assert found.drives == ()
    assert "cannot be searched" in found.reasons[0]


def test_a_drive_is_described_by_what_it_says_of_itself() -> None:
    identity = UsbIdentity("SONY", "AIT Turbo", "0042", bus=2, ports=(1, 4), speed=4)
    (drive,) = list_drives(backend(identity=identity, subclass=3)).drives
    assert (drive.title, drive.serial, drive.speed) == ("SONY AIT Turbo", "0042", "super")
    assert (drive.place, drive.selector, drive.subclass) == ("2.1.4", "usb:0042", 3)
    assert drive.problem is None


def test_a_drive_without_a_serial_number_goes_by_its_place() -> None:
    (drive,) = list_drives(backend(identity=UsbIdentity(serial=""))).drives
    assert (drive.serial, drive.selector) == (None, "usb:1.1")


def test_a_drive_that_may_not_be_opened_is_listed_with_the_problem() -> None:
    locked = Locked(TapeServer())
    (drive,) = list_drives(locked).drives
    assert drive.problem is not None
    assert "udev" in drive.problem
    assert drive.title == "1209:0001"
    with pytest.raises(NoDrive, match="udev"):
        open_endpoints("usb", locked)


def test_other_protocols_are_named() -> None:
    found = list_drives(Uas(TapeServer()))
    assert found.drives == ()
    assert "62h" in found.reasons[0]


def test_sysfs_answers_without_touching_the_drive(tmp_path: Path) -> None:
    untouchable = Locked(TapeServer())
    root = sysfs_tree(tmp_path, scsi_type=1, driver="usb-storage")
    (drive,) = list_drives(untouchable, sysfs=root).drives
    assert (drive.title, drive.serial, drive.problem) == ("SONY AIT", "00042", None)
    assert (drive.scsi_type, drive.kernel_driver) == (1, "usb-storage")


def test_a_disk_is_not_listed_and_never_taken(tmp_path: Path) -> None:
    root = sysfs_tree(tmp_path, scsi_type=0, driver="usb-storage")
    stick = backend(kernel_driver=True)
    found = list_drives(stick, sysfs=root)
    assert found.drives == ()
    assert "not a tape drive" in found.reasons[0]
    for selector in ("usb", "usb:00042", "usb:1.1"):
        with pytest.raises(NoDrive, match="not a tape drive"):
            open_endpoints(selector, stick, sysfs=root)
    assert stick.kernel_driver_active


def test_what_a_kernel_driver_holds_is_taken_only_by_name_unless_known_as_tape(
    tmp_path: Path,
) -> None:
    root = sysfs_tree(tmp_path, driver="usb-storage")
    unknown = backend(kernel_driver=True)
    with pytest.raises(NoDrive, match=r"SONY AIT is at usb:1\.1"):
        open_endpoints("usb", unknown, sysfs=root)
    assert unknown.kernel_driver_active
    open_endpoints("usb:00042", unknown, sysfs=root).close()


# Choosing.


def test_one_of_several_must_be_named() -> None:
    first = backend(identity=UsbIdentity(serial="A"))
    second = backend(identity=UsbIdentity(serial="B", ports=(2,)))
    bus = Bus(first, second)
    assert [drive.serial for drive in list_drives(bus).drives] == ["A", "B"]
    with pytest.raises(NoDrive, match=r"choose one: usb:1\.1 .*, usb:1\.2 "):
        open_endpoints("usb", bus)
    assert open_endpoints("usb:B", bus).info.serial == "B"
    assert open_endpoints("usb:1.1", bus).info.serial == "A"


@pytest.mark.parametrize("selector", ["usb:nosuch", "usb:9.9"])
def test_an_unknown_name_says_what_there_is(selector: str) -> None:
    with pytest.raises(NoDrive, match=r"Emulated tape drive is at usb:1\.1"):
        open_endpoints(selector, backend())


def test_a_name_of_another_kind_is_refused() -> None:
    with pytest.raises(NoDrive, match="usb:SERIAL"):
        open_endpoints("tape0", backend())


# Taking and giving back.


def test_the_kernel_driver_is_detached_and_comes_back() -> None:
    drive = backend(kernel_driver=True)
    endpoints = open_endpoints("usb", drive)
    assert not drive.kernel_driver_active
    endpoints.port_reset()
    assert not drive.kernel_driver_active, "usb-storage takes the interface again after a reset"
    assert endpoints.send(array("B", b"USBC" + bytes(10) + b"\x06" + bytes(16)), 1) == 31
    endpoints.close()
    assert drive.kernel_driver_active


def test_without_a_kernel_driver_none_is_attached() -> None:
    drive = backend()
    open_endpoints("usb", drive).close()
    assert not drive.kernel_driver_active


def test_a_drive_held_by_another_program_is_busy() -> None:
    drive = backend()
    endpoints = open_endpoints("usb", drive)
    with pytest.raises(DriveBusy, match="another program"):
        open_endpoints("usb", drive)
    assert list_drives(drive).drives, "looking is allowed"
    endpoints.close()
    open_endpoints("usb", drive).close()


def test_closing_never_fails() -> None:
    drive = backend(kernel_driver=True)
    endpoints = open_endpoints("usb", drive)
    drive.unplug()
    endpoints.close()
    endpoints.close()
    assert list_drives(drive).drives == ()


def test_a_handle_from_before_the_cable_was_pulled_stays_dead() -> None:
    drive = backend()
    endpoints = open_endpoints("usb", drive)
    drive.unplug()
    drive.plug_in()
    with pytest.raises(DriveGone):
        endpoints.receive(array("B", bytes(13)), 1)
    open_endpoints("usb", drive).close()


async def test_calls_run_one_at_a_time_in_a_thread() -> None:
    endpoints = open_endpoints("usb", backend())
    inside = 0

    def work() -> int:
        nonlocal inside
        inside += 1
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked)
        assert inside == 1
        inside -= 1
        return 1

    done: list[int] = []

    async def one() -> None:
        done.append(await endpoints.run(work))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert done == [1] * 4
    endpoints.close()


# Errors.


class Failing(EmulatedUsbBackend):
    """Fails bulk transfers in a given way."""

    error: Exception | None = None
    sent_bytes: int | None = None

    def bulk_write(self, *args: Any) -> int:
        if self.error:
            raise self.error
        return self.sent_bytes or len(args[3])

    def bulk_read(self, *_: Any) -> int:
        assert self.error
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (usb.core.USBError("Pipe error", -9, errno.EPIPE), EndpointStalled),
        (usb.core.USBTimeoutError("Timed out", -7, errno.ETIMEDOUT), TransferTimeout),
        (usb.core.USBTimeoutError("Timed out", -7, None), TransferTimeout),
        (usb.core.USBError("Overflow", -8, errno.EOVERFLOW), TransferOverflow),
        (usb.core.USBError("No device", -4, errno.ENODEV), DriveGone),
        (usb.core.USBError("Not found", -5, errno.ENOENT), DriveGone),
        (usb.core.USBError("I/O error", -1, errno.EIO), WireFailed),
        (usb.core.USBError("No memory", -11, errno.ENOMEM), WireFailed),
        (usb.core.USBError("Other error", -99, None), WireFailed),
        (usb.core.USBError("Busy", -6, errno.EBUSY), DriveBusy),
        (usb.core.USBError("Access", -3, errno.EACCES), NoDrive),
        (NotImplementedError("not supported"), WireFailed),
    ],
)
def test_libusbs_errors_become_ours(error: Exception, expected: type[TapefsError]) -> None:
    failing = Failing(TapeServer())
    endpoints = open_endpoints("usb", failing)
    failing.error = error
    for transfer in (endpoints.send, endpoints.receive):
        with pytest.raises(TapefsError) as caught:
            transfer(array("B", bytes(13)), 1)
        assert type(caught.value) is expected
        out_of_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
        assert ("usbfs_memory_mb" in str(caught.value)) is out_of_memory


def test_a_short_write_is_a_timeout() -> None:
    failing = Failing(TapeServer())
    failing.sent_bytes = 512
    endpoints = open_endpoints("usb", failing)
    with pytest.raises(TransferTimeout, match="512 of 4096"):
        endpoints.send(array("B", bytes(4096)), 1)


def test_stalls_and_resets_reach_the_device() -> None:
    drive = backend()
    endpoints = open_endpoints("usb", drive)
    drive.device.faults.plan(WireFault(FaultPoint.CLASS_RESET, FaultEffect.STALL))
    with pytest.raises(EndpointStalled):
        endpoints.class_reset()
    with pytest.raises(EndpointStalled):
        endpoints.send(array("B", b"junk"), 1)
    endpoints.class_reset()
    for pipe in Pipe:
        endpoints.clear_halt(pipe)
    with pytest.raises(TransferTimeout):
        endpoints.receive(array("B", bytes(13)), 1)


def test_timeouts_reach_libusb_in_milliseconds_and_never_as_for_ever() -> None:
    given: list[int] = []

    class Spy(EmulatedUsbBackend):
        def bulk_write(self, *args: Any) -> int:
            given.append(args[4])
            return len(args[3])

    endpoints = open_endpoints("usb", Spy(TapeServer()))
    for timeout_s in (0.0001, 60.0, 14_000.0, 1e9):
        endpoints.send(array("B", b"x"), timeout_s)
    assert given == [1, 60_000, 14_000_000, 0x7FFF_FFFF]
