"""A command on a terminal of any size, and what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from typing import TYPE_CHECKING, Self

import pyte

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

STUCK_S = 60.0


class Terminal:
    """A terminal in which one command runs."""

    def __init__(
        self, words: Sequence[str | Path], columns: int, rows: int, env: Mapping[str, str]
    ) -> None:
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.code: int | None = None
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            try:
                os.execve(str(words[0]), [str(word) for word in words], dict(env))
            finally:
                os._exit(127)
        self._set_size(columns, rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._fd)

    def resize(self, columns: int, rows: int) -> None:
        """As when somebody drags the corner of the window."""
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def send(self, number: signal.Signals) -> None:
        """A signal to the command."""
        os.kill(self._pid, number)

    def press(self, keys: bytes) -> None:
        """What the keyboard sends; b"\\x03" is Ctrl-C."""
        os.write(self._fd, keys)

    def until(self, condition: Callable[[list[str]], bool]) -> list[str]:
        """Let the command draw until its screen is as wanted; the lines."""
        end = time.monotonic() + STUCK_S
        while not condition(lines := self.lines()):
            assert self.code is None or self._take(0), f"it ended: {lines}"
            assert time.monotonic() < end, "\n".join(lines)
            self._take(0.2)
        return lines

    def wait(self) -> int:
        """Its exit code."""
        end = time.monotonic() + STUCK_S
        while self.code is None:
            assert time.monotonic() < end, "\n".join(self.lines())
            self._take(0.2)
        while self._take(0):
            pass
        return self.code

    def lines(self) -> list[str]:
        """The screen as text."""
        return [line.rstrip() for line in self.screen.display]

    def _take(self, timeout_s: float) -> bool:
        took = False
        if select.select([self._fd], [], [], timeout_s)[0]:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:  # EIO: nobody has it open any more
                data = b""
            took = bool(data)
            self.raw += data
            self._stream.feed(data)
        if self.code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return took

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
