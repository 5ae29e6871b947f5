"""Devices with more than one logical unit, and drives that do not like to be asked about them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
import usb.core
from tape_server import TapeServer

from tapefs.daemon.drives import UsbConnection
from tapefs.drive import UnsupportedDrive
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.reply import TargetReply
from tapefs.emulator.target import Target
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.errors import DriveGone, NoDrive
from tapefs.scsi.cdb import Inquiry
from tapefs.usb.device import open_endpoints

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator
    from pathlib import Path

    from tapefs.emulator.device_server import DeviceServer

GET_MAX_LUN = (0xA1, 0xFE)


class Changer(TapeServer):
    """An autoloader's other half: a medium changer (SMC), which is no tape drive."""

    def execute(self, cdb: bytes, data_out: bytes | memoryview | array[int]) -> TargetReply:
        if cdb[0] == Inquiry().pack()[0]:
            self.executed.append("INQUIRY")
            return TargetReply(
                True, b"\x08\x80\x03\x02\x1f\0\0\0TAPEFS  CHANGER         0001"[: cdb[4]]
            )
        return super().execute(cdb, data_out)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with VirtualCartridge.create(tmp_path / "x.tap", "lto5", 1 << 24) as cartridge:
        yield Target(cartridge)


def connection(backend: EmulatedUsbBackend) -> UsbConnection:
    return UsbConnection("usb", backend, settle_s=0.0)


@pytest.mark.parametrize("changer_first", [False, True])
async def test_the_tape_drive_of_an_autoloader_is_found(
    target: Target, changer_first: bool
) -> None:
    changer = Changer()
    units: list[DeviceServer] = [changer, target] if changer_first else [target, changer]
    backend = EmulatedUsbBackend(units[0])
    backend.device.more_units.append(units[1])
    drive = await connection(backend)()
    await drive.rewind()
    assert drive.identity.serial == target.serial
    assert changer.executed == (["INQUIRY"] if changer_first else [])
    assert backend.device.violations == []
    await drive.aclose()


async def test_a_device_without_any_tape_drive_is_refused_and_given_back() -> None:
    backend = EmulatedUsbBackend(Changer())
    backend.device.more_units.append(Changer())
    for _ in range(2):  # the second time would find the interface claimed
        with pytest.raises(UnsupportedDrive, match="device type 08h"):
            await connection(backend)()


class Reticent(EmulatedUsbBackend):
    """Answers GET MAX LUN in an odd way."""

    answer: bytes | Exception = b""
    asked = 0

    def ctrl_transfer(self, handle: Any, *request: Any) -> int:
        if request[:2] != GET_MAX_LUN:
            return super().ctrl_transfer(handle, *request)
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        data = request[4]
        for index, byte in enumerate(self.answer):
            data[index] = byte
        return len(self.answer)


@pytest.mark.parametrize(
    "answer",
    [
        usb.core.USBError("Pipe error", -9, errno.EPIPE),
        usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT),
        usb.core.USBError("Input/Output Error", -1, errno.EIO),
        b"",
        b"\x10",
        b"\xff",
    ],
    ids=repr,
)
async def test_a_drive_that_does_not_like_to_be_asked_has_one_unit(
    target: Target, answer: bytes | Exception
) -> None:
    backend = Reticent(target)
    backend.answer = answer
    endpoints = open_endpoints("usb", backend)
    assert endpoints.max_lun() == 0
    endpoints.close()
    drive = await connection(backend)()
    assert (drive.identity.serial, backend.asked) == (target.serial, 2)
    await drive.aclose()


async def test_an_atapi_tape_drive_is_not_asked(target: Target) -> None:
    backend = Reticent(target, subclass=0x03)
    drive = await connection(backend)()
    assert backend.asked == 0
    await drive.aclose()


async def test_a_drive_that_goes_when_it_is_asked_is_gone(target: Target) -> None:
    backend = Reticent(target)
    backend.answer = usb.core.USBError("No such device", -4, errno.ENODEV)
    with pytest.raises(DriveGone):
        await connection(backend)()


async def test_only_the_same_device_is_opened_again(target: Target) -> None:
    backend = EmulatedUsbBackend(target)
    connect = connection(backend)
    drive = await connect()
    backend.unplug()
    await drive.aclose()
    with pytest.raises(NoDrive, match=f"no drive answers to .*usb:{backend.identity.serial}"):
        await connect()
    backend.plug_in()
    drive = await connect()
    await drive.aclose()
