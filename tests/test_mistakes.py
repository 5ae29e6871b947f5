"""The sentence and the exit code for mistakes that people make, command by command.

Here are those that need nothing but a state directory with one volume, FIRST, whose cartridge is in
no drive. Mistakes with a mount, a drive or a tape stand with the commands:
test_first_light_refusals, test_cli_mount, test_cli_umount, test_offline, test_recall,
test_verify_cli, test_generations, test_doctor, test_report, test_manifest_command,
test_catalog_exchange, test_spool_move, test_watch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import test_tidy
import trio
from test_shelf import a_volume, new_rig

from tapefs import cli
from tapefs.errors import ExitCode

TAPEFS = Path(sys.executable).with_name("tapefs")
UNKNOWN = "is called 'NONE'; 'tapefs volumes' lists them"
NO_PATH = "volume 'FIRST' has no 'none'; 'tapefs find' looks for names on all volumes"
NO_DRIVE = "names no drive; a drive is virtual:FILE.tap, usb (the only one), usb:SERIAL"
NOT_SERVED = "no tapefs daemon serves {root}/file; 'tapefs status' lists those that run"
USAGE = ExitCode.USAGE


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`state` with the volume, its cartridge `first.tap`, a letter `file`, and `directory`."""
    directory = tmp_path_factory.mktemp("mistakes")
    rig = new_rig(directory)
    rig.tap = directory / "first.tap"
    rig.label = replace(rig.label, name="FIRST")
    trio.run(a_volume, rig)
    (directory / "file").write_text("dear all")
    (directory / "directory").mkdir()
    return directory


@pytest.fixture
def at_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    monkeypatch.setenv("TAPEFS_STATE_DIR", str(root / "state"))
    monkeypatch.setenv("TAPEFS_RUNTIME_DIR", str(root / "run"))
    return root


# Words, exit code, and what the sentence says; {root} is the directory that all of it is in.
MISTAKES: list[tuple[str, ExitCode, str]] = [
    ("", USAGE, "the following arguments are required: COMMAND; 'tapefs --help' shows how"),
    ("mont usb /mnt", USAGE, "invalid choice: 'mont' (choose from 'drives', 'format'"),
    ("drives all", USAGE, "unrecognized arguments: all; 'tapefs --help' shows"),
    # A drive that is none.
    ("format first.tap --name A", USAGE, "perhaps virtual:first.tap was meant"),
    ("mount /dev/nst0 directory", USAGE, "without the kernel's tape devices: a drive is virtual:"),
    ("mount FIRST directory", USAGE, NO_DRIVE),
    ("rebuild virtual:", USAGE, NO_DRIVE),
    ("doctor /dev/sg1", USAGE, "tapefs drives the USB device itself"),
    ("format virtual:directory --name A", USAGE, "is a directory; a cartridge is a .tap file"),
    ("format virtual:file --name A", ExitCode.DAMAGED_TAPE, "is no SIMH tape image"),
    ("verify virtual:file", ExitCode.DAMAGED_TAPE, "is no SIMH tape image"),
    ("rebuild virtual:none.tap", ExitCode.NO_DRIVE, "create it first or correct the name"),
    ("generations virtual:none.tap", ExitCode.NO_DRIVE, "create it first or correct the name"),
    ("format virtual:none/a.tap --name A", ExitCode.STATE_UNUSABLE, "choose another place"),
    ("format virtual:a.tap?personality=lto --name A", USAGE, "choose one of: ait1, ait3"),
    ("format virtual:a.tap?capacity=4X --name A", USAGE, "write it like 512K, 64M or 4G"),
    ("format virtual:a.tap?size=4G --name A", USAGE, "it has personality, capacity, faults"),
    # What format is asked to lose, or to make.
    ("format virtual:first.tap --name A", ExitCode.HAS_DATA, "use --force to lose that for good"),
    ("format virtual:first.tap", USAGE, "required: --name; 'tapefs format --help' shows"),
    ("format virtual:a.tap --name A --record-size 3K", USAGE, "take 64K, 128K, 256K, 512K or 1M"),
    (f"format virtual:a.tap --name {'A' * 300}", USAGE, "cannot name a volume"),
    # Mounts that there are not.
    ("umount", USAGE, "required: MOUNTPOINT; 'tapefs umount --help' shows"),
    ("umount file", ExitCode.NOT_MOUNTED, NOT_SERVED),
    ("sync file", ExitCode.NOT_MOUNTED, NOT_SERVED),
    ("status file", ExitCode.NOT_MOUNTED, NOT_SERVED),
    ("status --watch file", ExitCode.NOT_MOUNTED, NOT_SERVED),
    ("status --watch", ExitCode.NOT_MOUNTED, "no tape of this user is mounted"),
    ("generations file", ExitCode.NOT_MOUNTED, NOT_SERVED),
    ("verify directory", ExitCode.NOT_MOUNTED, "is neither a drive nor in a mount of tapefs"),
    ("verify directory --new --resume", USAGE, "--resume: not allowed with argument --new"),
    # The shelf.
    ("ls", USAGE, "required: VOLUME[:PATH]"),
    ("ls NONE", USAGE, UNKNOWN),
    ("ls FIRST:none", USAGE, NO_PATH),
    ("du NONE:photos", USAGE, UNKNOWN),
    ("du FIRST:none", USAGE, NO_PATH),
    ("volumes --state-dir file", ExitCode.STATE_UNUSABLE, "name another one with --state-dir"),
    ("find x --state-dir none", USAGE, "no volume is known in {root}/none; a mount makes one"),
    ("find x --size 5Q", USAGE, "write it like 10M.. or 4K..1G"),
    ("find x --newer yesterday", USAGE, "write it like 2019-06-01 or 2019-06-01T12:00"),
    ("find x --sha256 12", USAGE, "that has 64 hexadecimal digits"),
    ("find --duplicates --single-copy", USAGE, "not allowed with argument"),
    ("catalog export NONE a", USAGE, UNKNOWN),
    ("catalog export FIRST file", USAGE, "exists already; name a file that does not"),
    ("catalog export FIRST none/a", USAGE, "No such file or directory; name another file"),
    ("catalog import none", USAGE, "No such file or directory; name another file"),
    ("catalog import directory", USAGE, "Is a directory; name another file"),
    ("catalog import file", ExitCode.DAMAGED_TAPE, "export it again with 'tapefs catalog export'"),
    ("manifest NONE", USAGE, UNKNOWN),
    ("manifest FIRST:none", USAGE, NO_PATH),
    ("manifest FIRST --output file", USAGE, "is left alone; name another --output"),
    ("manifest FIRST --output none/a", USAGE, "name another --output"),
    ("manifest FIRST --format bagit --output none", USAGE, "with a directory that exists"),
    # Before anybody fetches a cartridge.
    ("recall FIRST:none --to directory", USAGE, NO_PATH),
    ("recall FIRST:photos --to none", ExitCode.MOUNTPOINT_UNUSABLE, "name one that exists with"),
    ("recall FIRST:photos --to file", ExitCode.MOUNTPOINT_UNUSABLE, "name one that exists with"),
    ("recall FIRST:photos --to directory", ExitCode.NOT_READY, "name its drive with --drive"),
    ("report NONE --html a", USAGE, UNKNOWN),
    ("report FIRST", USAGE, "required: --html"),
    ("report FIRST --html none/a", USAGE, "there is no directory {root}/none; make it, or name"),
    ("label FIRST --pdf directory", USAGE, "is a directory; give the name of a file in it"),
    ("label FIRST --pdf a --size huge", USAGE, "give lto, 8mm, dat, or width and height in mm"),
    ("spool list NONE", USAGE, UNKNOWN),
    ("spool move FIRST", USAGE, "required: --to"),
    ("spool move FIRST --to none", ExitCode.MOUNTPOINT_UNUSABLE, "name one that exists with --to"),
    ("mount NONE directory --offline", USAGE, UNKNOWN),
    # Cartridges that are files.
    ("cartridge info none", ExitCode.NO_DRIVE, "create it first or correct the name"),
    ("cartridge info directory", USAGE, "a cartridge is a .tap file"),
    ("cartridge cat file 0", ExitCode.DAMAGED_TAPE, "is no SIMH tape image"),
    ("cartridge cat first.tap 99", USAGE, "has no tape file 99: it holds tape files 0 to"),
    ("cartridge cat first.tap one", USAGE, "invalid int value: 'one'"),
    ("cartridge serve first.tap --listen here", USAGE, "write 127.0.0.1:3240 or [::1]:3240"),
    ("completion fish", USAGE, "choose from 'bash', 'zsh'"),
]


@pytest.mark.parametrize(("words", "code", "sentence"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_has_a_sentence(
    at_root: Path, capsys: pytest.CaptureFixture[str], words: str, code: ExitCode, sentence: str
) -> None:
    before = (at_root / "file").read_bytes(), (at_root / "first.tap").read_bytes()
    found = cli.main(words.split())
    out, err = capsys.readouterr()
    complaint = err.splitlines()[-1]
    assert sentence.format(root=at_root) in complaint
    assert complaint.startswith("tapefs: ")
    assert (found, out) == (code, "")
    assert ((at_root / "file").read_bytes(), (at_root / "first.tap").read_bytes()) == before


def test_every_command_is_among_them() -> None:
    tried = {words.split()[0] for words, _, _ in MISTAKES if words}
    assert {command.prog.split()[1] for command in test_tidy.COMMANDS} <= tried


SAYING = [
    "volumes",
    "ls FIRST:photos",
    "du FIRST",
    "find *.nef",
    "manifest FIRST:photos",
    "spool list",
    "cartridge info first.tap",
    "cartridge cat first.tap 1",
    "status --metrics",
    "completion bash",
]


@pytest.mark.parametrize("words", SAYING)
def test_a_full_disk_behind_the_answer_is_no_bug(at_root: Path, words: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [TAPEFS, *words.split()], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == ExitCode.OUTPUT_FAILED
    assert done.stderr.splitlines()[-1] == (
        "tapefs: what this prints cannot be written: No space left on device; make room there, or "
        "send it elsewhere"
    )


@pytest.mark.parametrize("words", SAYING)
def test_a_reader_that_has_seen_enough_is_no_error(at_root: Path, words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [TAPEFS, *words.split()], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    said = [line for line in done.stderr.splitlines() if " files, " not in line]
    assert (done.returncode, said) == (ExitCode.OK, [])


def test_no_file_gets_the_number_of_a_stream_that_is_closed(at_root: Path) -> None:
    """Else what a library prints would go into it."""
    script = (
        "import os, sys\n"
        "from tapefs import cli\n"
        "from tapefs.cli import Terminal\n"
        "def command():\n"
        "    number = os.open('found', os.O_CREAT | os.O_WRONLY)\n"
        "    os.write(number, str(number).encode())\n"
        "    print('nobody reads this')\n"
        "    return 7\n"
        "sys.exit(cli._judged(command, Terminal(), verbose=False))\n"
    )
    shell = f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, script], check=False)
    assert done.returncode == 7
    assert int((at_root / "found").read_text()) > 2


def test_an_answer_without_anybody_to_hear_it(at_root: Path) -> None:
    for streams in ("<&- >&-", "2>&-", "<&- >&- 2>&-"):
        for words in (
            "volumes",
            "ls FIRST",
            "cartridge cat first.tap 0",
            "verify virtual:first.tap",
        ):
            done = subprocess.run(
                ["sh", "-c", f"{TAPEFS} {words} {streams}"], capture_output=True, check=False
            )
            assert done.returncode == 0, (words, streams)
            assert b"bug" not in done.stderr
