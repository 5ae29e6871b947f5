"""The screens in README.md are what the program prints today.

Figures that differ from run to run (dates, UUIDs, serial numbers, times) stand as they stand there;
everything else is compared letter for letter.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_watch import STATUS
from volume_rig import Rig

from tapefs import cli, daemon
from tapefs.archive.retrieval import Retrieved
from tapefs.cli import recall
from tapefs.cli.terminal import Terminal
from tapefs.cli.verdict import verdict_of
from tapefs.cli.watch_screen import UNICODE, draw

README = (Path(__file__).parent.parent / "README.md").read_text()
MIB = 1 << 20
UUID_OR_MOMENT = re.compile(
    r"\b[0-9a-f]{8}\b|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|(?<=about )\d+(?= s of winding)"
)


def screen(holding: str) -> str:
    """The block of README.md that is no shell script and holds these words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (found,) = [block for language, block in blocks if not language and holding in block]
    return str(found)


def test_watching() -> None:
    wanted = screen("● writing")
    lines = wanted.splitlines()
    head, tape = lines[5], lines[6]
    letters = {drawn: letter for letter, drawn in UNICODE.marks.items()}
    cells = "".join(letters[drawn] for drawn in tape[7:])
    status: dict[str, Any] = {
        **STATUS,
        "volume": "FIRST",
        "drive": {
            "name": "virtual:first.tap",
            "vendor": "HP",
            "product": "Ultrium 3-SCSI",
            "serial": "VTDD1AAF4164",
            "virtual": True,
        },
        "lane": {
            **STATUS["lane"],
            "for_s": 3.5,
            "written_bytes_per_s": int(51.9 * MIB),
            "drive_busy_percent": 88,
            "jobs_waiting": {},
            "recalls_waiting_at_blocks": [],
        },
        "tape": {
            **STATUS["tape"],
            "written_bytes": 933 * MIB,
            "free_bytes": int(2.7 * 1024 * MIB),
            "segments": 9,
            "checkpoints": 3,
            "torn_tape_files": 0,
            "map": cells,
            "map_covers_bytes": len(cells),
            "position_bytes": head.index("▼") - 7,
        },
        "spool": {
            "used_bytes": 1000 * MIB,
            "limit_bytes": 2048 * MIB,
            "not_on_tape_bytes": 160 * MIB,
            "not_on_tape_files": 4,
            "going_to_tape_bytes": 152 * MIB,
        },
        "since_mount": {
            **STATUS["since_mount"],
            "rate_bytes_per_s": 2.7 * 1024 * MIB / 47.3,
            "reads_waiting": 0,
        },
        "verification": {**STATUS["verification"], "damaged_places": 0, "proven_good": None},
        "health": {
            "warnings": [
                "the drive is due for cleaning: unmount, load a cleaning cartridge, and mount again"
            ]
        },
    }
    drawn = "".join(f"{line.plain.rstrip()}\n" for line in draw(status, 96, "10:37:01"))
    assert drawn == wanted


async def test_the_shelf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    for name in ("FIRST", "SECOND"):
        (tmp_path / name).mkdir()
        rig = Rig(tmp_path / name)
        rig.state = state / "volumes"
        rig.label = replace(rig.label, name=name)
        await rig.format()
        async with rig.mounted() as user:
            user.mkdir("letters")
            await user.write("letters/bad-day.md", b"b" * 6944)
            if name == "FIRST":
                await user.write("film.mov", b"f" * 30_000_000)
            await user.sync()
    printed = ""
    for words in (["--single-copy"], ["bad*"]):
        assert cli.main(["find", *words, "--state-dir", str(state)]) == 0
        said = capsys.readouterr()
        shown = " ".join(f"'{word}'" if "*" in word else word for word in words)
        printed += f"$ tapefs find {shown}\n{said.out}{said.err}"
    wanted = screen("$ tapefs find")
    shown_lines, wanted_lines = (
        UUID_OR_MOMENT.sub("-", text).splitlines() for text in (printed, wanted)
    )
    assert shown_lines == wanted_lines


def test_recall(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = screen("not recalled:")
    found = Retrieved(
        found_count=5,
        refused_count=1,
        duration_s=0.6,
        refused=[(b"letters/bad-day.md", "something else is there; --overwrite replaces it")],
    )
    terminal = Terminal()
    target = Path("/data/back")
    terminal.answer({}, *recall._parts(found, target))
    with pytest.raises(Exception, match="as on tape") as raised:
        recall._judge(found, target)
    terminal.complain(verdict_of(raised.value))
    said = capsys.readouterr()
    assert said.out + said.err == wanted


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = screen("this computer:")
    above, below = (part.splitlines()[1:] for part in wanted.split("what to do:"))
    todo = dict(line.split(None, 1) for line in below)
    findings = []
    for line in above[1:]:
        verdict, what, found = re.split(r"  +", line.strip())
        finding = {"verdict": verdict, "check": what, "found": found, "todo": todo.get(what, "")}
        findings.append(finding)

    async def examine(*_: object) -> dict[str, Any]:
        return {"findings": findings}

    monkeypatch.setattr(daemon, "examine", examine)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == wanted
