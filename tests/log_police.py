"""The log police: a test fails when anything logs a WARNING or worse that it did not announce.

In a storage system silent degradation is the bug. `assert_logs` announces. conftest.py makes this
module a plugin of every test; test_log_police.py tries it on tests of its own.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_POLICE = pytest.StashKey["LogPolice"]()


class Announcement:
    """A pattern that some WARNING+ record of this test must match; also a context manager."""

    def __init__(self, police: LogPolice, pattern: str, count: int | None) -> None:
        self._police = police
        self._pattern = re.compile(pattern)
        self._count = count
        self.records: list[logging.LogRecord] = []

    def take(self, record: logging.LogRecord) -> bool:
        """Whether the record is one that was announced here."""
        if not self._pattern.search(record.getMessage()):
            return False
        self.records.append(record)
        return True

    def check(self) -> None:
        """Fail the test unless as many records came as were announced (one or more without)."""
        found = len(self.records)
        if found != self._count if self._count is not None else not found:
            wanted = "one or more" if self._count is None else self._count
            pytest.fail(f"announced log '{self._pattern.pattern}': {found} came, {wanted} wanted")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        self._police.announced.remove(self)
        if exc_type is None:
            self.check()


class LogPolice(logging.Handler):
    """Sees every record of every logger, also of those that do not propagate."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.announced: list[Announcement] = []
        self.unannounced: list[logging.LogRecord] = []
        self.announced_must_come = True

    def emit(self, record: logging.LogRecord) -> None:
        """Sort a record by whether it was announced."""
        if not any(announcement.take(record) for announcement in reversed(self.announced)):
            self.unannounced.append(record)

    def announce(self, pattern: str, count: int | None = None) -> Announcement:
        """Announce records that match `pattern` until the test ends or the `with` block does."""
        announcement = Announcement(self, pattern, count)
        self.announced.append(announcement)
        return announcement

    def check(self) -> None:
        """Fail the test for what was not announced, and for what was but did not come."""
        if self.unannounced:
            records, self.unannounced = self.unannounced, []
            lines = [f"{r.levelname} {r.name}: {r.getMessage()}" for r in records]
            pytest.fail("unannounced log:\n" + "\n".join(lines), pytrace=False)
        announced, self.announced = self.announced, []
        for announcement in announced if self.announced_must_come else []:
            announcement.check()


@pytest.fixture(autouse=True)
def log_police(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LogPolice]:
    """Watch this test from its first fixture to its last."""
    police = LogPolice()
    ours = logging.getLogger("tapefs")
    handlers, level = [*ours.handlers], ours.level
    original = logging.Logger.handle

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            police.handle(record)
        original(logger, record)

    monkeypatch.setattr(logging.Logger, "handle", handle)
    request.node.stash[_POLICE] = police
    yield police
    # A command logs to the end of its process. A test that ran one in this process ends it here:
    # the next test's standard error is another one, and this one's is closed.
    ours.handlers = handlers
    ours.setLevel(level)
    police.check()


@pytest.fixture
def assert_logs(log_police: LogPolice) -> Callable[..., Announcement]:
    """`assert_logs(pattern, count=None)`: records of WARNING and worse that must come."""
    return log_police.announce


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Check the log as part of the test, so that it counts as failed rather than as an error."""
    police = item.stash.get(_POLICE, None)
    try:
        yield
    except BaseException:
        if police:
            # What such a test announced has no chance to come any more.
            police.announced_must_come = False
        raise
    if police:
        police.check()
