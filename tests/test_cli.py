"""The command line: what is understood, and what each ending is worth."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stub_daemon
from stub_daemon import raising

from tapefs import cli, errors
from tapefs.cli import arguments
from tapefs.cli.verdict import verdict_of
from tapefs.errors import ExitCode

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterator


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for tapefs.daemon; tests give it the functions that they need."""
    return stub_daemon.install(monkeypatch)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """`parser` and all below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


ALL_PARSERS = list(parsers(cli.build_parser()))


# --- help and usage ---


@pytest.mark.parametrize("parser", ALL_PARSERS, ids=lambda parser: parser.prog)
def test_every_command_explains_itself_with_an_example(parser: argparse.ArgumentParser) -> None:
    text = parser.format_help()
    assert parser.description
    assert "example" in text
    assert parser.prog in (parser.epilog or "")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("words", [["--help"], ["status", "/"], ["umount", "/nowhere"]])
def test_commands_do_not_load_what_they_do_not_need(words: list[str]) -> None:
    script = (
        "import sys; from tapefs import cli\n"
        f"try: cli.main({words})\n"
        "except SystemExit: pass\n"
        "print(sorted({'trio', 'pyfuse3', 'usb', 'rich', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("family", "names"), cli.FAMILIES.items())
def test_a_family_adds_the_commands_it_is_listed_with(family: str, names: tuple[str, ...]) -> None:
    parser = cli.build_parser(names[-1])
    action = next(
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    assert tuple(action.choices) == names
    assert {f"tapefs.cli.{family}"} == {
        choice.get_default("run").__module__
        for choice in parsers(parser)
        if choice.get_default("run")
    }


def test_umount_imports_its_own_family_alone() -> None:
    script = (
        "import sys; from tapefs import cli\n"
        "cli.main(['umount', '/nowhere'])\n"
        "loaded = [name.rpartition('.')[2] for name in sys.modules if 'tapefs.cli.' in name]\n"
        "print(sorted(cli.FAMILIES.keys() & loaded))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "['umount']"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "required: COMMAND; 'tapefs --help' shows how it is used"),
        (["frmat"], "invalid choice: 'frmat'"),
        (["mount"], "required: DRIVE, MOUNTPOINT; 'tapefs mount --help'"),
        (["mount", "tape0", "/mnt"], "'tape0' names no drive; a drive is virtual:FILE.tap"),
        (["mount", "virtual:", "/mnt"], "'virtual:' names no drive"),
        (["mount", "usb:", "/mnt"], "'usb:' names no drive"),
        (["mount", "usb", "/mnt", "-o", "sploo=1"], "unknown mount option 'sploo'"),
        (["mount", "usb", "/mnt", "--read"], "unrecognized arguments: --read"),
        (["format", "usb"], "required: --name"),
        (["format", "usb", "--name", " "], "a volume needs a name"),
        (["format", "usb", "--name", "A", "--record-size", "100K"], "a record size of 100K"),
        (["format", "usb", "--name", "A", "--record-size", "2M"], "take 64K, 128K, 256K"),
        (["format", "usb", "--name", "A", "--record-size", "big"], "'big' is not a size"),
        (["cartridge"], "required: COMMAND"),
        (["cartridge", "cat", "x.tap", "one"], "invalid int value: 'one'"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tapefs: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_with_json_the_sentence_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "/no/such/mount", "--json"]) == ExitCode.NOT_MOUNTED
    out, err = capsys.readouterr()
    assert out == ""
    found = json.loads(err)
    assert found["event"] == "error"
    assert found["exit_code"] == ExitCode.NOT_MOUNTED
    assert "no tapefs daemon serves /no/such/mount" in found["message"]


def test_drives_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert arguments.drive("virtual:a.tap") == f"virtual:{tmp_path}/a.tap"
    assert arguments.drive("virtual:a.tap?capacity=4G") == f"virtual:{tmp_path}/a.tap?capacity=4G"
    assert arguments.drive("virtual:~/a.tap") == "virtual:/home/me/a.tap"
    assert [arguments.drive(name) for name in ("usb", "usb:HU10", "usb:1.2")] == [
        "usb",
        "usb:HU10",
        "usb:1.2",
    ]


def test_where_state_lives(monkeypatch: pytest.MonkeyPatch, private_directories: Path) -> None:
    assert arguments.state_dir("/chosen") == Path("/chosen")
    assert arguments.state_dir(None) == private_directories / "state"
    monkeypatch.delenv("TAPEFS_STATE_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert arguments.state_dir(None) == Path("/var/lib/tapefs")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert arguments.state_dir(None) == Path("/home/me/state/tapefs")


# --- endings ---


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (
            errors.VolumeFull("the tape is full;\n  load another"),
            "the tape is full; load another",
            12,
        ),
        (ExceptionGroup("", [ValueError(), errors.BlankTape("blank")]), "blank", 6),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), "interrupted", 130),
        (KeyboardInterrupt(), "interrupted", 130),
        (ImportError("libfuse3.so.3: no such file"), "libfuse3.so.3", 15),
        (KeyError("ino"), "this is a bug in tapefs: KeyError: 'ino'", 1),
        (ExceptionGroup("", [ExceptionGroup("", [OSError(5, "x")])]), "bug in tapefs: OSError", 1),
    ],
)
def test_every_exception_has_a_sentence_and_a_code(
    error: BaseException, sentence: str, code: int
) -> None:
    verdict = verdict_of(error)
    assert sentence in verdict.sentence
    assert "\n" not in verdict.sentence
    assert verdict.exit_code == code
    assert verdict.traceback_wanted == (code == 1)


def test_a_traceback_is_for_those_who_ask(
    daemon: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.list_drives = raising(KeyError("serial"))  # type: ignore[attr-defined]
    assert cli.main(["drives"]) == ExitCode.BUG
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["drives", "--verbose"]) == ExitCode.BUG
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "function", "sentence"),
    [
        (["drives"], "list_drives", "nothing was changed"),
        (["format", "usb", "--name", "A"], "format_tape", "may have no label now"),
        (["rebuild", "usb"], "rebuild", "the tape is as it was"),
    ],
)
def test_interrupted_commands_say_what_they_leave_behind(
    daemon: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    function: str,
    sentence: str,
) -> None:
    setattr(daemon, function, raising(KeyboardInterrupt()))
    assert cli.main(words) == ExitCode.INTERRUPTED
    err = capsys.readouterr().err
    assert err.startswith("tapefs: interrupted; ")
    assert sentence in err


# --- drives, format, rebuild ---


def answering(answer: dict[str, Any], calls: list[Any] | None = None) -> Callable[..., Any]:
    """An async function with this answer; its arguments but the last one go to `calls`."""

    async def function(*words: Any) -> dict[str, Any]:
        if calls is not None:
            calls.append(words[:-1])
            words[-1]({"event": "progress", "phase": "label", "message": "writing the label"})
        return answer

    return function


def test_drives_are_listed(daemon: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "drives": [
            {"selector": "usb:HU1", "product": "SDX-700", "medium_loaded": True, "serial": None}
        ],
        "reasons": [],
    }
    daemon.list_drives = answering(found)  # type: ignore[attr-defined]
    assert cli.main(["drives"]) == 0
    assert capsys.readouterr().out == (
        "USB tape drives:\n"
        "  selector  product  medium loaded  serial\n"
        "  usb:HU1   SDX-700  yes            -\n"
    )
    assert cli.main(["drives", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_no_drive_says_why(daemon: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"drives": [], "reasons": ["1.2 may not be opened: run as root"]}
    daemon.list_drives = answering(found)  # type: ignore[attr-defined]
    assert cli.main(["drives"]) == ExitCode.NO_DRIVE
    assert capsys.readouterr().err == "tapefs: 1.2 may not be opened: run as root\n"
    assert cli.main(["drives", "--json"]) == ExitCode.NO_DRIVE
    assert json.loads(capsys.readouterr().out) == found


def test_format_passes_on_what_was_said(
    daemon: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    answer = {"volume": "1234", "record_bytes": 65536}
    daemon.format_tape = answering(answer, calls)  # type: ignore[attr-defined]
    assert cli.main(["format", "usb", "--name", "A", "--record-size", "64K", "--force"]) == 0
    assert cli.main(["format", "virtual:/a.tap", "--name", "A", "--json"]) == 0
    out, err = capsys.readouterr()
    assert calls == [("usb", "A", 65536, True), ("virtual:/a.tap", "A", None, False)]
    assert "formatted usb as volume 'A'" in out
    assert "  record  64.0 KiB\n" in out
    assert err == "tapefs: writing the label\n"


def test_rebuild(daemon: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    daemon.rebuild = answering({"file_count": 1234}, calls)  # type: ignore[attr-defined]
    assert cli.main(["rebuild", "usb", "--state-dir", "/s"]) == 0
    assert calls == [("usb", Path("/s"))]
    assert "  file  1,234\n" in capsys.readouterr().out
