"""The log police itself: an unannounced warning fails a test, an announced one does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

WATCHED = """
import logging
import pytest

LOGGER = logging.getLogger("tapefs")
quiet = logging.getLogger("quiet")
quiet.propagate = False

def test_unannounced_warning():
    LOGGER.warning("spool %s", "low")

def test_unannounced_error_of_another_logger():
    logging.getLogger("any.other").error("gone")

def test_unannounced_on_the_root_logger():
    logging.warning("on the root")

def test_unannounced_where_nothing_propagates():
    quiet.critical("not propagated")

def test_announced(assert_logs):
    announced = assert_logs("spool (low|full)", count=2)
    LOGGER.warning("spool low")
    LOGGER.error("spool full")
    assert [record.levelname for record in announced.records] == ["WARNING", "ERROR"]

def test_announced_for_a_block(assert_logs):
    with assert_logs("low"):
        LOGGER.warning("spool low")

def test_information_needs_no_announcement():
    LOGGER.info("segment.committed")

def test_announced_but_it_never_comes(assert_logs):
    assert_logs("spool low")

def test_announced_but_it_comes_too_often(assert_logs):
    assert_logs("low", count=1)
    LOGGER.warning("low")
    LOGGER.warning("low")

def test_announced_but_another_one_comes(assert_logs):
    with assert_logs("low"):
        LOGGER.warning("low")
        LOGGER.warning("high")

def test_announced_for_a_block_but_it_comes_later(assert_logs):
    with assert_logs("low"):
        LOGGER.warning("low")
    LOGGER.warning("low again")

@pytest.fixture
def daemon():
    yield
    logging.warning("lost at the end")

def test_unannounced_in_a_fixture_that_ends(daemon):
    pass

def test_that_fails_by_itself(assert_logs):
    assert_logs("never")
    assert 1 == 2

def test_that_stands_for_a_process_that_logs_to_the_end():
    LOGGER.addHandler(logging.StreamHandler())
    LOGGER.setLevel(logging.DEBUG)

def test_after_one_that_logs_to_the_end():
    assert (LOGGER.handlers, LOGGER.level) == ([], logging.NOTSET)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest prints when it runs WATCHED under the police."""
    directory = tmp_path_factory.mktemp("watched")
    (directory / "test_watched.py").write_text(WATCHED)
    options = ["-v", "-c", os.devnull, "--rootdir", str(directory), "--no-header"]
    options += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "log_police"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_watched.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ).stdout


def outcomes(printed: str, test: str) -> list[str]:
    """The words that pytest printed after the name of `test`, ending of its fixtures included."""
    return re.findall(rf"^test_watched\.py::{test} (\w+)", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("test", "reported"),
    [
        ("test_unannounced_warning", "WARNING tapefs: spool low"),
        ("test_unannounced_error_of_another_logger", "ERROR any.other: gone"),
        ("test_unannounced_on_the_root_logger", "WARNING root: on the root"),
        ("test_unannounced_where_nothing_propagates", "CRITICAL quiet: not propagated"),
        ("test_announced_but_it_never_comes", "announced log 'spool low': 0 came"),
        ("test_announced_but_it_comes_too_often", "announced log 'low': 2 came, 1 wanted"),
        ("test_announced_but_another_one_comes", "WARNING tapefs: high"),
        ("test_announced_for_a_block_but_it_comes_later", "WARNING tapefs: low again"),
        ("test_that_fails_by_itself", "assert 1 == 2"),
    ],
)
def test_what_was_not_announced_fails_the_test(printed: str, test: str, reported: str) -> None:
    assert outcomes(printed, test) == ["FAILED"], printed
    assert reported in printed


@pytest.mark.parametrize(
    "test",
    [
        "test_announced",
        "test_announced_for_a_block",
        "test_information_needs_no_announcement",
        "test_that_stands_for_a_process_that_logs_to_the_end",
        "test_after_one_that_logs_to_the_end",
    ],
)
def test_what_was_announced_passes(printed: str, test: str) -> None:
    assert outcomes(printed, test) == ["PASSED"], printed


def test_a_warning_while_fixtures_end_is_an_error(printed: str) -> None:
    found = outcomes(printed, "test_unannounced_in_a_fixture_that_ends")
    assert found == ["PASSED", "ERROR"], printed
    assert "WARNING root: lost at the end" in printed
