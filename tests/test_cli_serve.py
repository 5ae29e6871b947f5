"""`tapefs cartridge serve`: the command around the USB/IP server."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from usbip_rig import (
    IN_ENDPOINT,
    OUT_ENDPOINT,
    SET_CONFIGURATION,
    UsbipHost,
    command_block,
    status_block,
)

from tapefs import cli
from tapefs.cli.cartridge import listening_address
from tapefs.emulator.deck import Deck
from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.status import CheckConditionStatus
from tapefs.emulator.target import Target
from tapefs.errors import ExitCode, UsageError
from tapefs.scsi.cdb import Write6
from tapefs.scsi.sense import Sense, SenseKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORD = b"on its way" * 100
REQUEST_SENSE = bytes((3, 0, 0, 0, 18, 0))


@pytest.fixture
def cartridge(tmp_path: Path) -> Path:
    path = tmp_path / "a.tap"
    VirtualCartridge.create(path, "lto5", 1024**3).close()
    return path


@contextlib.contextmanager
def served(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The command, started; killed if it is still there at the end."""
    command = [sys.executable, "-m", "tapefs", "cartridge", "serve", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def announced(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON document that says where the drive is."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    document: dict[str, Any] = json.loads(text)
    return document


async def write_record(port: int, answered_tag: int = 2) -> None:
    """Attach, write one record into the drive's buffer, and detach."""
    with trio.fail_after(60):
        host = UsbipHost(await trio.open_tcp_stream("127.0.0.1", port))
        assert await host.attach() == 0
        await host.control(*SET_CONFIGURATION)
        # The unit attention of power on goes to whoever asks first.
        await host.transfer(OUT_ENDPOINT, command_block(1, REQUEST_SENSE, 18, is_in=True))
        await host.transfer(IN_ENDPOINT, 18)
        assert (await host.transfer(IN_ENDPOINT, 13)).data == status_block(1)
        write = command_block(2, Write6(len(RECORD)).pack(), len(RECORD))
        await host.transfer(OUT_ENDPOINT, write)
        await host.transfer(OUT_ENDPOINT, RECORD)
        assert (await host.transfer(IN_ENDPOINT, 13)).data == status_block(answered_tag)
        await host.aclose()


def only_record(path: Path) -> bytes:
    with VirtualCartridge.open(path, read_only=True) as tape:
        assert tape.object_count == 1
        into = bytearray(len(RECORD))
        tape.read_record(0, memoryview(into))
        return bytes(into)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED, "everything that was written is in"),
        (signal.SIGTERM, ExitCode.OK, ""),
    ],
)
async def test_what_was_buffered_is_on_the_cartridge_however_it_ends(
    cartridge: Path, number: int, code: ExitCode, said: str
) -> None:
    with served(str(cartridge), "--listen", "127.0.0.1:0", "--json") as process:
        about = announced(process)
        assert about["bus_id"] == "1-1"
        await write_record(about["port"])
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == code
    assert said in complaint
    assert only_record(cartridge) == RECORD


async def test_once(cartridge: Path) -> None:
    with served(f"virtual:{cartridge}", "--listen", "127.0.0.1:0", "--once") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(8)]
        hint = lines[-1]
        assert hint.startswith("attach it, as root: modprobe vhci-hcd; usbip --tcp-port ")
        assert hint.endswith(" attach -r 127.0.0.1 -b 1-1\n")
        await write_record(int(hint.split()[8]))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line.split(":")[1].rsplit(" ", 1)[0] for line in said.splitlines()] == [
        " attached by",
        " detached by",
    ]
    assert only_record(cartridge) == RECORD


async def test_a_drive_that_fails_as_planned(cartridge: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.write_text("status wrong_tag command=WRITE(6)\n")
    name = f"virtual:{cartridge}?faults={plan}"
    with served(name, "--listen", "127.0.0.1:0", "--once", "--json") as process:
        await write_record(announced(process)["port"], answered_tag=2 ^ 0xFFFF)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert only_record(cartridge) == RECORD


def test_a_buffer_that_cannot_be_written_is_not_kept_quiet(
    cartridge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_deck: Deck) -> None:
        raise CheckConditionStatus(Sense(SenseKey.MEDIUM_ERROR, 0x0C, 0))

    monkeypatch.setattr(Deck, "flush", fail)
    monkeypatch.setattr("tapefs.cli.drive_server.UsbipServer.serve", _return_at_once)
    words = ["cartridge", "serve", str(cartridge), "--listen", "127.0.0.1:0"]
    assert cli.main(words) == ExitCode.DRIVE_ERROR
    assert "could not be written" in capsys.readouterr().err


def test_a_signal_that_comes_late_waits_for_the_buffer(
    cartridge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []
    eject, before = Target.eject, signal.getsignal(signal.SIGTERM)

    def slow_eject(target: Target) -> None:
        signal.raise_signal(signal.SIGTERM)
        eject(target)
        happened.append("buffer written")

    monkeypatch.setattr(Target, "eject", slow_eject)
    monkeypatch.setattr("tapefs.cli.drive_server.UsbipServer.serve", _return_at_once)
    signal.signal(signal.SIGTERM, lambda *_: happened.append("ended by the signal"))
    try:
        assert cli.main(["cartridge", "serve", str(cartridge), "--listen", "127.0.0.1:0"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert happened == ["buffer written", "ended by the signal"]


async def _return_at_once(_server: object, listeners: list[trio.SocketListener], **_: Any) -> None:
    for listener in listeners:
        await listener.aclose()


def test_addresses() -> None:
    assert listening_address("127.0.0.1:3240") == ("127.0.0.1", 3240)
    assert listening_address("[::1]:0") == ("::1", 0)
    assert listening_address("tape.example:65535") == ("tape.example", 65535)


@pytest.mark.parametrize("text", ["", "3240", ":3240", "a:", "a:b", "a:65536", "a:-1", "a:²"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address to listen on; write"):
        listening_address(text)


def test_a_port_that_is_taken(cartridge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["cartridge", "serve", str(cartridge), "--listen", address]
        assert cli.main(words) == ExitCode.USAGE
    assert "Address already in use" in capsys.readouterr().err


def test_cartridges_that_cannot_be_served(
    cartridge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cartridge", "serve", "--listen", "127.0.0.1:0"]
    assert cli.main([*words, str(tmp_path / "none.tap")]) == ExitCode.NO_DRIVE
    with VirtualCartridge.open(cartridge):
        assert cli.main([*words, str(cartridge)]) == ExitCode.DRIVE_BUSY
    assert capsys.readouterr().out == ""
