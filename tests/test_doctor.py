"""`tapefs doctor`: each thing that may be wrong with a computer or a drive, and what to type."""

from __future__ import annotations

import ctypes.util
import grp
import importlib
import json
import os
import pwd
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trio
from tape_rig import Rigs

from tapefs import cli
from tapefs.daemon import doctor, host_checks
from tapefs.daemon.host_checks import ADVICE, OK, PROBLEM, Finding, Machine
from tapefs.emulator.medium import VirtualCartridge
from tapefs.errors import DriveBusy, NoFuse
from tapefs.scsi import cdb as c
from tapefs.scsi.density import rate_bytes_per_s
from tapefs.usb.discovery import NO_PERMISSION, UsbDriveInfo, UsbDriveList

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW_S = 1_900_000_000.0
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    """A computer on which all is well, but for what a test changes."""
    root = tmp_path / "root"
    for name in ("umount.fuse.tapefs", "mount.fuse.tapefs"):
        (root / "usr/sbin").mkdir(parents=True, exist_ok=True)
        (root / "usr/sbin" / name).touch()
    (root / "etc/udev/rules.d").mkdir(parents=True)
    (root / "etc/udev/rules.d/60-tapefs.rules").touch()
    usb = root / "sys/module/usbcore/parameters"
    usb.mkdir(parents=True)
    (usb / "usbfs_memory_mb").write_text("16\n")
    (tmp_path / "state").mkdir()

    def make(**more: Any) -> Machine:
        chosen: dict[str, Any] = {"uid": 0, "release": "6.1.0", "now_s": lambda: NOW_S, **more}
        return Machine(tmp_path / "state", root=root, **chosen)

    return make


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    assert (finding.verdict == OK) is (finding.todo == ""), "whoever is not well is told what to do"
    return finding


def test_where_all_is_well_there_is_nothing_to_do(machine: Callable[..., Machine]) -> None:
    findings = host_checks.check_host(machine(spool_bytes=1))
    assert {finding.verdict for finding in findings if finding.check != "FUSE"} == {OK}
    checked = {finding.check for finding in findings}
    assert checked >= {"kernel", "libraries", "FUSE", "helpers", "clock", "state", "room"}


@pytest.mark.parametrize(
    ("release", "verdict"),
    [("6.1.0-18-amd64", OK), ("5.10", OK), ("5.4.0", ADVICE), ("4.19.1", PROBLEM), ("?", PROBLEM)],
)
def test_the_kernel(machine: Callable[..., Machine], release: str, verdict: str) -> None:
    finding = only(host_checks.kernel(machine(release=release)))
    assert (finding.verdict, finding.found) == (verdict, release)
    if verdict != OK:
        assert finding.todo == "use Linux 5.10 or newer"


def test_a_library_that_cannot_be_loaded(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "pyfuse3 3" in only(host_checks.libraries(machine())).found

    def broken(name: str) -> None:
        if name == "pyfuse3":
            raise ImportError("libfuse3.so.3: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    finding = only(host_checks.libraries(machine()))
    assert finding.verdict == PROBLEM
    assert "pyfuse3 (libfuse3.so.3: cannot open" in finding.found
    assert "libusb 1.0" in finding.found
    assert "apt-get install fuse3 libfuse3-3 libusb-1.0-0" in finding.todo


def test_fuse(machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*, allow_other: bool) -> None:
        raise NoFuse("/dev/fuse does not exist; load the kernel module with 'modprobe fuse'")

    def alone(*, allow_other: bool) -> None:
        if allow_other:
            raise NoFuse("allow_other needs the line 'user_allow_other' in /etc/fuse.conf; add it")

    monkeypatch.setattr(host_checks, "require_fuse", never)
    assert only(host_checks.fuse(machine())) == Finding(
        "FUSE",
        PROBLEM,
        "/dev/fuse does not exist",
        "load the kernel module with 'modprobe fuse'",
    )
    monkeypatch.setattr(host_checks, "require_fuse", alone)
    finding = only(host_checks.fuse(machine()))
    assert (finding.verdict, finding.todo) == (
        ADVICE,
        "where others shall see the tape: add it",
    )


def test_fusermount3(machine: Callable[..., Machine], tmp_path: Path) -> None:
    program = tmp_path / "fusermount3"
    program.touch(0o755)

    def check(uid: int, found: str | None) -> Finding:
        return only(host_checks.fusermount(machine(uid=uid, which=lambda _: found)))

    assert check(0, None).verdict == ADVICE
    assert check(7, None) == Finding(
        "fusermount3", PROBLEM, "not installed", "as root: apt-get install fuse3"
    )
    assert check(0, str(program)).verdict == OK
    refused = check(7, str(program))
    assert (refused.verdict, refused.todo) == (PROBLEM, f"as root: chmod u+s {program}")
    program.chmod(0o4755)
    assert check(7, str(program)).verdict == OK


def test_helpers_that_are_not_linked(machine: Callable[..., Machine]) -> None:
    sbin = machine().root / "usr/sbin"
    (sbin / "mount.fuse.tapefs").unlink()
    finding = only(host_checks.helpers(machine()))
    assert finding.found == "/etc/fstab cannot name tapefs: mount.fuse.tapefs not linked"
    assert finding.todo.endswith("/mount.fuse.tapefs /usr/sbin/mount.fuse.tapefs")
    (sbin / "umount.fuse.tapefs").unlink()
    (sbin / "umount.fuse.tapefs").symlink_to("/gone/umount.fuse.tapefs")
    finding = only(host_checks.helpers(machine()))
    assert finding.verdict == ADVICE
    assert "plain umount does not wait for the tape" in finding.found, "a link to nothing is none"
    assert "as root: ln -sf " in finding.todo


def test_permission_to_open_drives(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> Finding:
        return only(host_checks.permission(machine(uid=NOBODY.pw_uid)))

    group = grp.struct_group(("tape", "x", 26, []))
    monkeypatch.setattr(grp, "getgrnam", lambda _: group)
    monkeypatch.setattr(os, "getgroups", lambda: [26])
    assert check().verdict == OK
    monkeypatch.setattr(os, "getgroups", list)
    finding = check()
    assert finding.found == "nobody is not in the group tape"
    assert finding.todo == "as root: adduser nobody tape; then log in again"

    def none(_: str) -> grp.struct_group:
        raise KeyError

    monkeypatch.setattr(grp, "getgrnam", none)
    assert check().todo == "as root: groupadd --system tape && adduser nobody tape"
    (machine().root / "etc/udev/rules.d/60-tapefs.rules").unlink()
    finding = check()
    assert finding.found == "the udev rule is not installed"
    assert "contrib/udev/60-tapefs.rules /etc/udev/rules.d/" in finding.todo
    assert only(host_checks.permission(machine(uid=0))).verdict == OK


@pytest.mark.parametrize(
    ("text", "verdict"), [("16", OK), ("0", OK), ("8", ADVICE), ("1", PROBLEM), ("", OK)]
)
def test_memory_for_usb(machine: Callable[..., Machine], text: str, verdict: str) -> None:
    path = machine().root / "sys/module/usbcore/parameters/usbfs_memory_mb"
    path.write_text(text)
    finding = only(host_checks.usb_memory(machine()))
    assert finding.verdict == verdict
    if verdict != OK:
        assert finding.todo == ("as root: echo 16 >/sys/module/usbcore/parameters/usbfs_memory_mb")
    path.unlink()
    assert only(host_checks.usb_memory(machine())).verdict == OK


def test_the_clock(machine: Callable[..., Machine]) -> None:
    assert only(host_checks.clock(machine())).verdict == OK
    finding = only(host_checks.clock(machine(now_s=lambda: 0.0)))
    assert (finding.verdict, finding.todo) == (
        PROBLEM,
        "set it; as root: timedatectl set-ntp true",
    )
    volume = machine().state_dir / "volumes/uuid"
    volume.mkdir(parents=True)
    (volume / "catalog.sqlite").touch()
    os.utime(volume / "catalog.sqlite", (NOW_S + 1e6, NOW_S + 1e6))
    finding = only(host_checks.clock(machine()))
    assert finding.verdict == PROBLEM
    assert ", but a tape was mounted here on 2030-03-2" in finding.found
    os.utime(volume / "catalog.sqlite", (NOW_S, NOW_S))
    service = machine().root / "run/systemd/timesync"
    service.mkdir(parents=True)
    assert only(host_checks.clock(machine())).verdict == ADVICE
    (service / "synchronized").touch()
    assert only(host_checks.clock(machine())).verdict == OK


class Usage(NamedTuple):
    free: int


GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "verdict", "todo"),
    [
        (GIB // 2, PROBLEM, "make room, or choose another disk with --state-dir"),
        (10 * GIB, ADVICE, "mount with -o spool=8G, or make room for 16 GiB"),
        (16 * GIB, OK, ""),
    ],
)
def test_room_for_the_spool(
    machine: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    verdict: str,
    todo: str,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free))
    found = {finding.check: finding for finding in host_checks.places(machine())}
    assert (found["room"].verdict, found["room"].todo) == (verdict, todo)


def test_directories_that_cannot_be_used(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("TAPEFS_RUNTIME_DIR", "/dev/null/run")
    found = {finding.check: finding for finding in host_checks.places(machine())}
    assert found["state"].verdict == PROBLEM
    assert found["state"].todo == "choose another directory: tapefs mount --state-dir DIR"
    assert found["sockets"].verdict == PROBLEM
    assert found["sockets"].todo == "name another one in TAPEFS_RUNTIME_DIR"
    assert "room" not in found


@pytest.mark.parametrize(
    ("speed", "rate", "verdict", "says"),
    [
        (300e6, 140_000_000, OK, "takes 300 MB/s; the drive 140 MB/s"),
        (200e6, 140_000_000, ADVICE, "the tape will stop and start while others write"),
        (100e6, 140_000_000, ADVICE, "the tape will stop and start, which"),
        (100e6, None, OK, "takes 100 MB/s"),
        (None, 140_000_000, OK, "cannot be measured there"),
    ],
)
def test_the_speed_of_the_spools_disk(
    speed: float | None, rate: int | None, verdict: str, says: str
) -> None:
    finding = host_checks.disk_speed(speed, rate, quick=False)
    assert finding.verdict == verdict
    assert says in finding.found
    assert (finding.todo == "") is (verdict == OK)
    assert "--quick" in host_checks.disk_speed(None, rate, quick=True).found


def test_measuring_leaves_nothing(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(128 << 20))
    speed = host_checks.measured_speed(machine())
    assert speed is None or speed > 0, "not every file system has files without a name"
    assert list(machine().state_dir.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 20))
    assert host_checks.measured_speed(machine()) is None


# -- drives


@pytest.mark.parametrize(
    ("personality", "verdicts"),
    [
        ("lto5", {"drive": OK, "blocks": OK, "position": OK, "capacity": OK}),
        ("ait1", {"drive": OK, "blocks": OK, "position": OK, "capacity": ADVICE}),
        ("travan", {"drive": OK, "blocks": OK, "position": OK, "capacity": ADVICE}),
        ("plain", {"drive": OK, "blocks": OK, "position": OK, "capacity": ADVICE}),
    ],
)
async def test_what_drives_are(tmp_path: Path, personality: str, verdicts: dict[str, str]) -> None:
    rigs = Rigs(tmp_path)
    rig = rigs(personality)
    drive = await rig.open()
    found = {finding.check: finding for finding in doctor.examined(drive, "drive")}
    rigs.close()
    assert {check: finding.verdict for check, finding in found.items()} == verdicts
    if personality == "travan":
        assert found["blocks"].found == "only of 512 bytes: a record is several of them"
    if personality == "plain":
        assert "tapefs counts" in found["position"].found
    if verdicts["capacity"] == ADVICE:
        assert found["capacity"].todo.startswith("mount with -o capacity=SIZE")
    assert not any(
        command.page == 0x2E for command in rig.wire.log if isinstance(command, c.LogSense)
    ), "reading TapeAlert would clear it"


async def test_a_drive_without_a_cartridge(tmp_path: Path) -> None:
    rigs = Rigs(tmp_path)
    rig = rigs()
    rig.target.eject()
    drive = await rig.open()
    (finding,) = doctor.examined(drive, "drive usb")
    rigs.close()
    assert finding.verdict == ADVICE
    assert finding.found.endswith(", without a cartridge")
    assert finding.todo.startswith("load a cartridge and run this again")


def test_rates_by_density() -> None:
    assert rate_bytes_per_s(0x58) == 140_000_000
    assert rate_bytes_per_s(0x30) == 4_000_000
    assert rate_bytes_per_s(0) is rate_bytes_per_s(None) is None


def info(speed: str = "high", problem: str | None = None) -> UsbDriveInfo:
    names = ("SONY", "SDX-700C", "S1")
    return UsbDriveInfo(1, (2,), 0x54C, 0x1, *names, speed, 6, 1, "usb-storage", problem)


def test_a_port_that_is_too_slow() -> None:
    (finding,) = doctor._wire("drive usb:S1", info("full"), 12_000_000)
    assert finding == Finding(
        "drive usb:S1",
        ADVICE,
        "connected at USB full speed, too slow for its 12 MB/s",
        "use a faster port, cable or hub",
    )
    assert doctor._wire("drive", info("high"), 12_000_000) == []
    assert doctor._wire("drive", info("super"), 400_000_000) == []
    assert len(doctor._wire("drive", info("high"), 80_000_000)) == 1


async def test_drives_on_usb_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "list_drives", lambda: UsbDriveList((), ("no drive there",)))
    findings, rate = await doctor._drives(None)
    assert (only(findings).verdict, only(findings).found, rate) == (ADVICE, "no drive there", None)

    listed = UsbDriveList((info(problem=NO_PERMISSION),), ())
    monkeypatch.setattr(doctor, "list_drives", lambda: listed)

    def busy(name: str) -> None:
        raise DriveBusy(f"{name} is in use by another program; stop that program")

    monkeypatch.setattr(doctor, "open_drive", busy)
    findings, _ = await doctor._drives(None)
    assert only(findings) == Finding(
        "drive usb:S1", ADVICE, "usb:S1 is in use by another program", "stop that program"
    )
    monkeypatch.setattr(
        doctor, "_mounts", lambda: [{"mountpoint": "/mnt/t", "drive": {"name": "usb:S1"}}]
    )
    findings, _ = await doctor._drives(None)
    assert only(findings).found == "in use by the mount at /mnt/t"


# -- the command


def make_cartridge(path: Path, personality: str = "lto5") -> None:
    VirtualCartridge.create(path, personality, 64 << 20).close()


def test_the_command_with_a_virtual_drive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "a.tap"
    make_cartridge(image, "ait1")
    assert cli.main(["doctor", f"virtual:{image}", "--quick", "--json"]) in (0, 23)
    document = json.loads(capsys.readouterr().out)
    findings = {each["check"]: each for each in document["findings"]}
    assert findings["drive"]["found"].startswith("SONY SDX-400C")
    assert document["problems_count"] == sum(
        each["verdict"] == "problem" for each in document["findings"]
    )
    assert cli.main(["doctor", f"virtual:{image}", "--quick"]) in (0, 23)
    out = capsys.readouterr().out
    assert "what to do:" in out
    assert "mount with -o capacity=SIZE" in out


@pytest.mark.parametrize(
    ("drive", "code", "sentence"),
    [
        ("virtual:/no/such.tap", 23, "tapefs cannot work here as things are: see to "),
        ("/dev/nst0", 2, "without the kernel's tape devices: a drive is virtual:FILE.tap"),
        ("usb:", 2, "'usb:' names no drive"),
    ],
)
def test_mistakes_have_a_sentence(
    drive: str, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", drive, "--quick"]) == code
    assert sentence in capsys.readouterr().err


def test_a_cartridge_in_use_is_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "a.tap"
    make_cartridge(image)
    with VirtualCartridge.open(image):
        cli.main(["doctor", f"virtual:{image}", "--quick", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    drive = next(each for each in findings if each["check"] == "drive")
    assert drive["verdict"] == ADVICE
    assert drive["todo"]


def test_it_runs_without_any_drive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "list_drives", lambda: UsbDriveList((), ("no USB here",)))
    monkeypatch.setattr(
        doctor,
        "check_host",
        lambda _: [Finding("kernel", OK, "6.1"), Finding("x", ADVICE, "y", "z")],
    )
    assert cli.main(["doctor", "--quick"]) == 0, "advice is no failure"
    captured = capsys.readouterr()
    assert "no USB here" in captured.out
    assert "plug the drive in and switch it on" in captured.out


async def test_examining_never_raises_for_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.tap"
    image.write_bytes(b"this is no tape image")
    found = await doctor.examine(f"virtual:{image}", tmp_path, True, lambda _: None)
    drive = next(each for each in found["findings"] if each["check"] == "drive")
    assert drive["verdict"] == PROBLEM
    assert drive["todo"]
    assert trio.current_time() > 0
