"""What systemd learns of a mount in the foreground: the datagrams of sd_notify(3).

`Type=notify` in contrib/systemd/tapefs@.service waits for READY=1, which is sent when the mount
answers. Without $NOTIFY_SOCKET nothing is sent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final, Self

from tapefs import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

Event = dict[str, Any]

# systemd gives a start or stop this long from the last message on, where the unit's own limit,
# which contrib/systemd/ sets to infinity, is over.
EXTENSION_S: Final = 600
# While a phase lasts, its message is repeated after this time, for the sake of the extension.
REPEAT_S: Final = 30.0
# systemd itself may be waiting for this mount to answer, so it is not waited for without end.
SEND_TIMEOUT_S: Final = 1.0


class SdNotify:
    """Passes events of one mount on to the service manager that started this process."""

    def __init__(self, address: str | None, clock_s: Callable[[], float] = time.monotonic) -> None:
        """`address` is the value of $NOTIFY_SOCKET: a path, or `@NAME` for an abstract one."""
        self._address = _socket_name(address)
        self._clock_s = clock_s
        self._status = ""
        self._sent_at_s = 0.0
        self._changing = True

    @classmethod
    def of_this_process(cls) -> Self:
        """That of $NOTIFY_SOCKET, which is taken out of the environment: children are not meant."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

    def report(self, event: Event) -> None:
        """Tell what an event of `daemon.run_mount` means. Never raises, waits SEND_TIMEOUT_S."""
        kind = event["event"]
        if kind == "mounted":
            self._changing = False
            self._send("READY=1", self._status_line(event))
        elif kind == "unmounting":
            self._changing = True
            self._send("STOPPING=1", self._status_line(event))
        elif self._status_of(event) != self._status or self._repeat_is_due():
            self._send(self._status_line(event))

    def failed(self, sentence: str) -> None:
        """Say why the mount ends; `systemctl status` shows it afterwards. Never raises."""
        self._send(self._status_line({"message": sentence}))

    def _repeat_is_due(self) -> bool:
        return self._clock_s() - self._sent_at_s >= REPEAT_S

    def _status_line(self, event: Event) -> str:
        self._status = self._status_of(event)
        return f"STATUS={self._status}"

    @staticmethod
    def _status_of(event: Event) -> str:
        text = " ".join(str(event.get("message") or event.get("phase") or "").split())
        done, total = event.get("done_bytes"), event.get("total_bytes")
        # Whole percents: a drive that runs for hours must not keep the service manager busy.
        return f"{text}, {100 * (done or 0) // total} %" if total else text

    def _send(self, *lines: str) -> None:
        self._sent_at_s = self._clock_s()
        if self._address is None:
            return
        if self._changing:
            lines = (*lines, f"EXTEND_TIMEOUT_USEC={EXTENSION_S * 1_000_000}")
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as end:
                end.settimeout(SEND_TIMEOUT_S)
                end.sendto(os.fsencode("\n".join(lines)), self._address)
        except (OSError, ValueError) as exc:
            telemetry.event(telemetry.SYSTEMD_DEAF, logging.WARNING, told=lines[0], reason=exc)


def _socket_name(address: str | None) -> str | None:
    """The name as the kernel knows it: that of an abstract socket begins with a zero byte."""
    if not address:
        return None
    return f"\0{address[1:]}" if address.startswith("@") else address
