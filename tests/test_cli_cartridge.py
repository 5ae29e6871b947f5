"""`tapefs cartridge`: what is on a virtual cartridge."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tapefs import cli
from tapefs.emulator.medium import VirtualCartridge
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

LABEL_BLOCK = b"README.txt".ljust(257, b"\0") + b"ustar\x0000" + b"tapefs-label.json"
SEGMENT_START = b"comment=tapefs format=1 volume=x sequence=1 kind=segment checkpoint=0\n"


@pytest.fixture
def cartridge(tmp_path: Path) -> Path:
    """A label, a segment of two records, nothing, a foreign archive, and data left open."""
    path = tmp_path / "a.tap"
    with VirtualCartridge.create(path, "lto5", 1024**3) as tape:
        tape.append_records([LABEL_BLOCK.ljust(10240, b"\0")])
        tape.append_filemarks(1)
        tape.append_records([SEGMENT_START.ljust(65536, b"\1")])
        tape.append_records([b"\2" * 65536])
        tape.append_filemarks(2)
        tape.append_records([b"\0" * 257 + b"ustar" + b"\0" * 251])
        tape.append_filemarks(1)
        tape.append_records([b"odd"])
    return path


def test_cartridge_info(cartridge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cartridge", "info", str(cartridge), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["personality"] == "lto5"
    assert found["capacity_bytes"] == 1024**3
    assert [tuple(file.values()) for file in found["tape_files"]] == [
        (0, "label", 0, 1, 10240, True),
        (1, "segment", 2, 2, 131072, True),
        (2, "empty", 5, 0, 0, True),
        (3, "foreign tar archive", 6, 1, 513, True),
        (4, "unknown data", 8, 1, 3, False),
    ]
    assert cli.main(["cartridge", "info", f"virtual:{cartridge}"]) == 0
    assert "  4  unknown data, no filemark after it  8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (0, LABEL_BLOCK.ljust(10240, b"\0")),
        (1, SEGMENT_START.ljust(65536, b"\1") + b"\2" * 65536),
        (2, b""),
        (4, b"odd"),
    ],
)
def test_cartridge_cat(
    cartridge: Path, capsysbinary: pytest.CaptureFixture[bytes], number: int, data: bytes
) -> None:
    assert cli.main(["cartridge", "cat", str(cartridge), str(number)]) == 0
    assert capsysbinary.readouterr().out == data


@pytest.mark.parametrize("number", [-1, 5])
def test_cartridge_cat_of_what_is_not_there(
    cartridge: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    assert cli.main(["cartridge", "cat", str(cartridge), "--", str(number)]) == ExitCode.USAGE
    assert "holds tape files 0 to 4" in capsys.readouterr().err


def test_cartridges_that_cannot_be_read(
    cartridge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["cartridge", "info", str(tmp_path / "no.tap")]) == ExitCode.NO_DRIVE
    with VirtualCartridge.open(cartridge):
        assert cli.main(["cartridge", "info", str(cartridge)]) == ExitCode.DRIVE_BUSY
    (tmp_path / "bad.tap").write_bytes(b"this is no tape image at all")
    assert cli.main(["cartridge", "cat", str(tmp_path / "bad.tap")]) == ExitCode.DAMAGED_TAPE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 3


def test_a_reader_that_has_seen_enough_is_no_error(cartridge: Path) -> None:
    words = [sys.executable, "-m", "tapefs", "cartridge", "cat", str(cartridge), "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.read(8)
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 0
