"""What both ends of the control socket share: where it is, its limits, and what may be asked."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from tapefs import errors
from tapefs.errors import StateUnusable, TapefsError

Event = dict[str, Any]
Report = Callable[[Event], None]

# A path of 4,095 bytes, each of them escaped, fits.
REQUEST_BYTES_MAX: Final = 32 * 1024
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
# More clients than this at one time get an error line: each one costs a task in the daemon.
CLIENTS_MAX: Final = 64
# How long the daemon, at its end, waits for clients to take their answers.
LAST_ANSWERS_S: Final = 10.0
# How long a client waits for the first line of an answer.
FIRST_ANSWER_S: Final = 15.0
# Requests that are answered from what the daemon knows.
IMMEDIATE: Final = frozenset({"status", "generations"})


class Service(Protocol):
    """What a mount can be asked for. Called from the daemon's trio loop only."""

    def status(self) -> dict[str, Any]:
        """What the mount is doing, as JSON types. Must not wait."""

    def generations(self) -> dict[str, Any]:
        """The checkpoints on the tape, as JSON types. Must not wait."""

    async def sync(self, report: Report) -> dict[str, Any]:
        """Return when everything written so far is on tape; raises TapefsError when it cannot be.

        Not cancelled when the client goes away.
        """

    async def wait_finalized(self, report: Report) -> dict[str, Any]:
        """Return when the file system is unmounted and the tape finalized, else raise.

        Returns or raises at once when that is over already. Cancelled when the client goes away:
        it must only wait, the work belongs to the daemon.
        """

    async def verify(self, asked: dict[str, Any], report: Report) -> dict[str, Any]:
        """Read back from tape what `asked` names, and return what was found.

        `scope` is "everything", "rest" or "new"; or `path`, bytes from the mount's root on decoded
        by os.fsdecode, names a file or directory. Cancelled when the client goes away.
        """


def runtime_dir() -> Path:
    """The directory of the control sockets; created, for its owner only, when missing.

    `$TAPEFS_RUNTIME_DIR`, else /run/tapefs for root, else `$XDG_RUNTIME_DIR/tapefs`, else
    /tmp/tapefs-UID. Raises StateUnusable when it cannot be made or others could write to it.
    """
    chosen, xdg = os.environ.get("TAPEFS_RUNTIME_DIR"), os.environ.get("XDG_RUNTIME_DIR")
    uid = os.geteuid()
    if chosen:
        path = Path(chosen)
    elif uid == 0:
        path = Path("/run/tapefs")
    elif xdg:
        path = Path(xdg) / "tapefs"
    else:
        path = Path(f"/tmp/tapefs-{uid}")  # noqa: S108 - who owns it is checked below
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as exc:
        raise StateUnusable(
            f"the directory for control sockets {path} cannot be used ({exc.strerror}); "
            "name another one in TAPEFS_RUNTIME_DIR"
        ) from exc
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o022:
        raise StateUnusable(
            f"the directory for control sockets {path} belongs to somebody else or others may "
            "write to it; name another one in TAPEFS_RUNTIME_DIR"
        )
    return path


def socket_path(mountpoint: Path) -> Path:
    """Where the mount at `mountpoint` listens. Raises StateUnusable as `runtime_dir` does."""
    real = os.fsencode(os.path.realpath(mountpoint))
    return runtime_dir() / f"{hashlib.sha256(real).hexdigest()[:16]}.sock"


def error_from(message: str, exit_code: int) -> TapefsError:
    """The error that another process described by its sentence and exit code."""
    for kind in vars(errors).values():
        if (
            isinstance(kind, type)
            and issubclass(kind, TapefsError)
            and kind is not errors.FilesystemError
            and kind.exit_code == exit_code
        ):
            return kind(message)
    return TapefsError(message)
