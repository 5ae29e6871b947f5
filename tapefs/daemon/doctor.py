"""`tapefs doctor`: what stands in the way of mounting tapes here, and what to do about it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import trio

from tapefs import control
from tapefs.daemon.drives import open_drive
from tapefs.daemon.host_checks import (
    ADVICE,
    OK,
    PROBLEM,
    Finding,
    Machine,
    check_host,
    disk_speed,
    measured_speed,
)
from tapefs.errors import DriveBusy, TapefsError
from tapefs.geometry import Geometry
from tapefs.scsi.density import rate_bytes_per_s
from tapefs.usb.discovery import list_drives

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.drive import TapeDrive
    from tapefs.usb.discovery import UsbDriveInfo

    Report = Callable[[dict[str, Any]], None]

# What USB carries of a drive's data at best, by libusb's names.
_WIRE_BYTES_PER_S: Final = {"low": 0, "full": 1_000_000, "high": 35_000_000}
_RECORD_BYTES_LIKED: Final = 512 * 1024


async def examine(
    drive_name: str | None, state_dir: Path, quick: bool, report: Report
) -> dict[str, Any]:
    """Look at everything; the findings as JSON types. Never raises for what it finds.

    Drives are opened for a moment, unless they are in use: `drive_name`, or all on USB. No tape is
    moved, and no TapeAlert read, which would clear it. `quick` leaves out what takes seconds.
    """
    machine = Machine(state_dir)
    _tell(report, "looking at this computer")
    findings = await trio.to_thread.run_sync(check_host, machine)
    _tell(report, "looking at the drives")
    found, rate = await _drives(drive_name)
    speed = None
    if not quick:
        _tell(report, "measuring the disk of the spool")
        speed = await trio.to_thread.run_sync(measured_speed, machine)
    findings = [*findings, disk_speed(speed, rate, quick), *found]
    return {
        "problems_count": sum(finding.verdict == PROBLEM for finding in findings),
        "advices_count": sum(finding.verdict == ADVICE for finding in findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _tell(report: Report, message: str) -> None:
    report({"event": "progress", "phase": "doctor", "message": message})


async def _drives(name: str | None) -> tuple[list[Finding], int | None]:
    """What is found of the drives, and the highest rate among those that can be used."""
    if name is not None:
        return await _one(name, "drive", None)
    listed = await trio.to_thread.run_sync(list_drives)
    if not listed.drives:
        reason = "; ".join(listed.reasons)
        todo = "plug the drive in and switch it on; virtual drives need none"
        return [Finding("drives", ADVICE, reason, todo)], None
    findings: list[Finding] = []
    rates = []
    for info in listed.drives:
        found, rate = await _one(info.selector, f"drive {info.selector}", info)
        findings += found
        rates.append(rate or 0)
    return findings, max(rates) or None


async def _one(
    name: str, check: str, info: UsbDriveInfo | None
) -> tuple[list[Finding], int | None]:
    try:
        async with open_drive(name) as opened:
            # A virtual drive is as fast as the disk.
            rate = None if opened.virtual else rate_bytes_per_s(opened.drive.density)
            return [*examined(opened.drive, check), *_wire(check, info, rate)], rate
    except DriveBusy as exc:
        mounts = [status["mountpoint"] for status in _mounts() if status["drive"]["name"] == name]
        if mounts:
            return [Finding(check, OK, f"in use by the mount at {mounts[0]}")], None
        found, _, todo = str(exc).partition("; ")
        return [Finding(check, ADVICE, found, todo)], None
    except TapefsError as exc:
        found, _, todo = str(exc).partition("; ")
        return [Finding(check, PROBLEM, found, todo or "see 'tapefs drives'")], None


def _mounts() -> list[dict[str, Any]]:
    try:
        return list(control.all_statuses())
    except TapefsError:
        return []


def examined(drive: TapeDrive, check: str) -> list[Finding]:
    """What a drive that was opened is, and what it lacks."""
    identity = drive.identity
    serial = f", serial number {identity.serial}" if identity.serial else ""
    title = f"{identity.vendor} {identity.product} {identity.revision}{serial}"
    if not drive.medium_loaded:
        todo = "load a cartridge and run this again, to see what drive and cartridge can do"
        return [Finding(check, ADVICE, f"{title}, without a cartridge", todo)]
    findings = [Finding(check, OK, title)]
    if drive.write_protected:
        todo = "to write to it, open the cartridge's tab"
        findings.append(Finding("cartridge", ADVICE, "write protected", todo))
    return [*findings, *_blocks(drive), *_quirks(drive)]


def _blocks(drive: TapeDrive) -> list[Finding]:
    limits, fixed = drive.block_limits, drive.block_bytes
    if not Geometry.is_block_size(fixed):
        found = f"only blocks of {fixed} bytes, which tapefs cannot use"
        return [Finding("blocks", PROBLEM, found, "use another drive")]
    if fixed:
        return [Finding("blocks", OK, f"only of {fixed} bytes: a record is several of them")]
    if not limits.allow(_RECORD_BYTES_LIKED):
        found = f"of {limits.maximum_bytes} bytes at most: 'tapefs format' takes smaller records"
        return [Finding("blocks", OK, found)]
    return [Finding("blocks", OK, f"of any length up to {limits.maximum_bytes} bytes")]


def _quirks(drive: TapeDrive) -> list[Finding]:
    able = drive.capabilities
    if able.read_position:
        position = Finding("position", OK, "the drive tells where its head is")
    else:
        found = "the drive does not tell where its head is: tapefs counts, and proves by reading"
        position = Finding("position", OK, found)
    if able.capacity_unit_bytes is not None or able.volume_statistics:
        return [position, Finding("capacity", OK, "the drive tells how much room is left")]
    found = "the drive does not tell how much room is left on a cartridge"
    todo = "mount with -o capacity=SIZE, what the cartridge holds without compression"
    return [position, Finding("capacity", ADVICE, found, todo)]


def _wire(check: str, info: UsbDriveInfo | None, rate: int | None) -> list[Finding]:
    """Whether the port is fast enough for the drive."""
    wire = None if info is None else _WIRE_BYTES_PER_S.get(info.speed)
    if info is None or wire is None or rate is None or wire >= rate:
        return []
    found = f"connected at USB {info.speed} speed, too slow for its {rate / 1e6:.0f} MB/s"
    return [Finding(check, ADVICE, found, "use a faster port, cable or hub")]
