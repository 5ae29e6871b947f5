"""The contract suite over the emulated drive: what it learns is what the personality says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tap_reader
from drive_contract import Report, contract

from tapefs.emulator.medium import VirtualCartridge
from tapefs.emulator.personality import PERSONALITIES, Personality

PROGRAM = Path(__file__).with_name("drive_contract.py")
FIELDS = {each.name for each in dataclasses.fields(Personality)}
# Measured, or only as big as the cartridge that was tried.
MEASURED = {"rate_bytes_per_s", "capacity_bytes", "early_warning_bytes"}


async def examined(tmp_path: Path, kind: str, **how: bool) -> Report:
    path = tmp_path / f"{kind}.tap"
    if not path.exists():
        VirtualCartridge.create(path, kind, 24 << 20).close()
    return await contract(f"virtual:{path}", megabytes=1, **how)


@pytest.mark.parametrize("kind", list(PERSONALITIES))
async def test_what_is_learnt_is_what_the_drive_is(tmp_path: Path, kind: str) -> None:
    personality = PERSONALITIES[kind]
    report = await examined(tmp_path, kind, destructive=True, to_the_end=True)
    assert report.personality.keys() <= FIELDS
    wrong = {
        name: (learnt, getattr(personality, name))
        for name, learnt in report.personality.items()
        if name not in MEASURED and learnt != getattr(personality, name)
    }
    assert wrong == ({} if personality.has_read_position else {"knows_position": (False, True)})
    if personality.fixed_only:
        assert "variable blocks" in report.facts["stopped"]
        return
    assert "stopped" not in report.facts
    learnt = FIELDS - report.personality.keys()
    assert len(learnt) < 20, learnt
    assert 22 << 20 < report.personality["capacity_bytes"] <= 24 << 20
    surprising = {"tgt": True}.get(kind, False)
    assert bool(report.surprises) is surprising, report.surprises
    assert json.loads(json.dumps(dataclasses.asdict(report), default=str))["drive"] == report.drive
    assert "Surprises" in report.text()


async def test_without_the_flag_the_tape_stays_as_it_is(tmp_path: Path) -> None:
    await examined(tmp_path, "lto5", destructive=True)
    before = (tmp_path / "lto5.tap").read_bytes()
    assert list(tap_reader.objects(tmp_path / "lto5.tap"))
    report = await examined(tmp_path, "lto5")
    assert (tmp_path / "lto5.tap").read_bytes() == before
    assert report.personality["has_locate"]
    assert "rates" not in report.facts


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        ("unit good command=TEST_UNIT_READY\nunit check sense=2/04/01 times=3", "false good"),
        ("status zero_residue times=always", "residue of INQUIRY is wrong"),
        ("status full_residue times=always command=INQUIRY", "residue of INQUIRY is wrong"),
    ],
)
async def test_quirks_are_found(tmp_path: Path, plan: str, found: str) -> None:
    path, file = tmp_path / "a.tap", tmp_path / "plan"
    VirtualCartridge.create(path, "lto5", 24 << 20).close()
    file.write_text(plan)
    report = await contract(f"virtual:{path}?faults={file}")
    assert any(found in sentence for sentence in report.surprises), report.surprises


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_line(tmp_path: Path) -> None:
    refused = run(tmp_path, "--drive", "virtual:a.tap", "--to-the-end")
    assert refused.returncode == 2
    assert "--destructive" in refused.stderr
    assert not (tmp_path / "a.tap").exists()
    done = run(
        tmp_path, "--drive", "virtual:a.tap?capacity=8M", "--destructive", "--megabytes", "1"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "drive-report.json").read_text())
    assert report["personality"]["vendor"] == "HP"
    assert (tmp_path / "drive-report.txt").read_text() in done.stdout
    missing = run(tmp_path, "--drive", "carrier-pigeon")
    assert missing.returncode != 0
    assert "Traceback" not in missing.stderr
