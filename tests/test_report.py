"""The page and the insert, as a browser and a PDF reader see them.

Chromium without a screen shows the page, poppler the PDF, zbar reads the QR code.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from volume_rig import Rig
from workload import noise

from tapefs import cli
from tapefs.archive import known_volumes
from tapefs.archive.portrait import portrait
from tapefs.archive.verify import Scope
from tapefs.cli.terminal import bytes_text
from tapefs.errors import ExitCode
from tapefs.report.insert import SIZE_MIN_MM, SIZES_MM, insert_pdf
from tapefs.report.page import page

if TYPE_CHECKING:
    from pathlib import Path

# A name that a page must not take for anything but a name.
HOSTILE = "</script><script>document.title='taken'</script><!--"


def nothing(_: object) -> None:
    """Progress is not looked at."""


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    """Three generations: something deleted, something replaced, nothing waiting."""
    rig = Rig(tmp_path)
    rig.state = tmp_path / "state" / "volumes"
    await rig.format()
    async with rig.mounted() as user:
        user.mkdir("photos")
        user.mkdir("photos/2019")
        user.mkdir("letters")
        await user.write("photos/2019/large", noise(1, 1_500_000))
        await user.write("photos/small", noise(2, 10_000))
        await user.write("deleted", noise(3, 900_000))
        await user.write("letters/replaced", noise(4, 300_000))
    async with rig.mounted() as user:
        user.unlink("deleted")
        await user.truncate("letters/replaced", 0)
        await user.write("letters/replaced", noise(5, 200_000))
    async with rig.mounted() as user:
        await user.write(HOSTILE.replace("/", "_"), b"x")
        await user.write("grün ☃", b"xy")
    return rig


def told(rig: Rig, **options: Any) -> dict[str, Any]:
    volume = known_volumes.find_volume(rig.state.parent, rig.label.name)
    return portrait(volume, nothing, **options)


def seen(document: str, directory: Path, fragment: str = "") -> str:
    """What a browser makes of the page: its document after its script ran."""
    path = directory / "page.html"
    path.write_text(document)
    words = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync --virtual-time-budget=5000"
    )
    command = ["chromium", *words.split(), f"--user-data-dir={directory / 'chromium'}"]
    command += ["--dump-dom", path.as_uri() + fragment]
    environment = {**os.environ, "TZ": "UTC"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    assert 'data-ready="yes"' in done.stdout, done.stderr
    return done.stdout


def rows(document: str) -> list[list[str]]:
    """The rows of the table of files."""
    (body,) = re.findall(r'<table id="files">.*?<tbody>(.*?)</tbody>', document, re.DOTALL)
    return [
        [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", body)
    ]


async def test_the_portrait_says_where_everything_is(rig: Rig) -> None:
    found = told(rig)
    kinds = [each["kind"] for each in found["tape_files"]]
    assert kinds == ["segment", "checkpoint"] * 3
    assert [each["generation"] for each in found["tape_files"]] == [None, 1, None, 2, None, 3]
    first, second = found["tape_files"][0], found["tape_files"][2]
    assert (first["live_bytes"], first["files_count"]) == (1_510_000, 2)
    assert first["largest"] == [["photos/2019/large", 1_500_000], ["photos/small", 10_000]]
    assert (second["live_bytes"], second["files_count"]) == (200_000, 1)
    assert sum(each["size_bytes"] for each in found["tape_files"]) == found["used_bytes"]
    sizes = {each["name"]: each["bytes"] for each in found["contents"]["in"]}
    assert sizes == {"photos": 1_510_000, "letters": 200_000}
    (photos,) = (each for each in found["contents"]["in"] if each["name"] == "photos")
    assert [each["name"] for each in photos["in"]] == ["2019"]
    assert found["files"][0][:2] == ["photos/2019/large", 1_500_000]
    assert found["files_complete"]
    assert len(found["files"]) == 5
    json.dumps(found)


async def test_the_portrait_of_many_files_has_the_largest(rig: Rig) -> None:
    found = told(rig, files_max=2)
    assert [each[0] for each in found["files"]] == ["photos/2019/large", "letters/replaced"]
    assert not found["files_complete"]


async def test_what_was_verified_and_damaged_is_told(rig: Rig) -> None:
    async with rig.mounted() as user:
        await user.volume.verifier.whole(Scope.EVERYTHING, nothing)
    found = told(rig)
    assert all(each["verified_ns"] for each in found["tape_files"])
    assert found["proven_good_ns"]


async def test_a_browser_shows_it(rig: Rig, tmp_path: Path) -> None:
    shown = seen(page(told(rig), 1_700_000_000 * 10**9), tmp_path)
    assert f"<title>{rig.label.name} - tapefs</title>" in shown, "no name was taken for a script"
    assert str(rig.label.volume_uuid) in shown
    names = [row[0] for row in rows(shown)]
    assert names[0] == "photos/2019/large"
    assert HOSTILE.replace("/", "_") in names
    assert "grün ☃" in names
    assert shown.count('class="piece"') >= 6
    assert re.search(r"<button[^>]*><span>photos</span>", shown)
    assert "Made by tapefs" in shown
    assert "2023-11-14 22:13" in shown


async def test_a_browser_searches_it(rig: Rig, tmp_path: Path) -> None:
    text = page(told(rig), 0)
    shown = seen(text, tmp_path, "#q=PHOTOS%20small")
    assert [row[0] for row in rows(shown)] == ["photos/small"]
    assert "1 found." in shown
    digest = told(rig)["files"][0][4]
    assert [row[0] for row in rows(seen(text, tmp_path, f"#q={digest}"))] == ["photos/2019/large"]


def test_an_empty_volume_has_a_page_and_an_insert(tmp_path: Path) -> None:
    empty: dict[str, Any] = {
        "name": "EMPTY",
        "uuid": "0" * 36,
        "record_bytes": 65536,
        "created_ns": 0,
        **dict.fromkeys(("last_here_ns", "files_count", "size_bytes", "live_bytes"), 0),
        **dict.fromkeys(("used_bytes", "waiting_bytes", "generations_count"), 0),
        **dict.fromkeys(("verified_count", "damage_count"), 0),
        "proven_good_ns": None,
        "tape_files": [],
        "contents": {"name": "", "bytes": 0, "files": 0, "in": []},
        "files": [],
        "files_complete": True,
        "damages": [],
        "health": None,
    }
    shown = seen(page(empty, 0), tmp_path)
    assert "Nothing is on the tape yet." in shown
    assert "No mount has ended on this tape yet." in shown
    assert "0 found." in shown
    assert "EMPTY" in pdf_text(insert_pdf(empty, SIZES_MM["dat"], 0, bytes_text), tmp_path)


def pdf_text(pdf: bytes, directory: Path) -> str:
    path = directory / "insert.pdf"
    path.write_bytes(pdf)
    command = ["pdftotext", "-layout", str(path), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def code_in(path: Path) -> str:
    """What the QR code on a page holds."""
    picture = path.with_suffix("")
    rendering = ["pdftoppm", "-r", "300", "-png", "-singlefile", str(path), str(picture)]
    subprocess.run(rendering, check=True)
    command = ["zbarimg", "--quiet", "--raw", f"{picture}.png"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("size_mm", [*SIZES_MM.values(), SIZE_MIN_MM])
async def test_an_insert_names_the_cartridge_and_says_how_to_read_it(
    rig: Rig, tmp_path: Path, size_mm: tuple[float, float]
) -> None:
    pdf = insert_pdf(told(rig), size_mm, 1_700_000_000 * 10**9, bytes_text)
    text = pdf_text(pdf, tmp_path)
    assert rig.label.name in text
    assert str(rig.label.volume_uuid) in text
    blocks = rig.label.record_bytes // 512
    assert f"tar -b {blocks} --xattrs --acls -xpf /dev/nst0" in text
    assert "mt -f /dev/nst0 fsf 1; and tar again, until there is no more" in text
    assert "photos/" in text
    assert code_in(tmp_path / "insert.pdf") == str(rig.label.volume_uuid)


def run(rig: Rig, *words: str) -> int:
    return cli.main([*words, "--state-dir", str(rig.state.parent)])


async def test_the_commands_write_their_files(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page_path, pdf_path = tmp_path / "a.html", tmp_path / "a.pdf"
    assert run(rig, "report", rig.label.name, "--html", str(page_path), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(page_path)
    assert answer["bytes"] == page_path.stat().st_size
    assert "photos/2019/large" in page_path.read_text()
    assert run(rig, "label", rig.label.name, "--pdf", str(pdf_path), "--size", "90x60") == 0
    assert pdf_path.read_bytes().startswith(b"%PDF-")
    assert str(pdf_path) in capsys.readouterr().out


async def test_likely_mistakes_get_a_sentence(
    rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    name, state = rig.label.name, ("--state-dir", str(rig.state.parent))
    for words, sentence in (
        (["report", name], "the following arguments are required: --html"),
        (["report", "WRONG", "--html", str(tmp_path / "x")], "'tapefs volumes' lists them"),
        (["report", name, "--html", str(there)], "exists already; --force replaces it"),
        (["report", name, "--html", str(tmp_path)], "is a directory"),
        (["label", name, "--pdf", str(tmp_path / "no" / "x")], "there is no directory"),
        (["label", name, "--pdf", str(tmp_path / "x"), "--size", "a4"], "'a4' is no size"),
        (["label", name, "--pdf", str(tmp_path / "x"), "--size", "10x10"], "from 65x50 to 180x180"),
        (["label", name, "--pdf", str(tmp_path / "x"), "--size", "nanx60"], "is no size"),
    ):
        assert cli.main([*words, *state]) == ExitCode.USAGE
        assert sentence in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert run(rig, "report", name, "--html", str(there), "--force") == 0
    assert there.read_text().startswith("<!DOCTYPE html>")
