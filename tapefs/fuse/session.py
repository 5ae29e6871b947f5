"""One mount from mount(2) to the end: options, the request loop, limits of the kernel.

pyfuse3 keeps its session in module globals: a process serves one mount at a time.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from tapefs import telemetry
from tapefs.errors import MountpointUnusable
from tapefs.fuse.mountpoint import (
    SUBTYPE,
    detach_dead_mount,
    mount_at,
    prepare_mountpoint,
    require_fuse,
)
from tapefs.fuse.negotiation import Negotiation
from tapefs.fuse.request_wait import taking_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tapefs.fuse.operations import Operations

# Requests handled at a time. Beyond it even stat(2) waits, so it must exceed the number of reads
# that may wait for tape (`Config.waiting_recalls_max`) with room to spare.
REQUESTS_MAX: Final = 1200
# Tasks kept ready between requests.
IDLE_TASKS_MAX: Final = 8
# Sequential readers get megabytes ahead of them: streaming from the spool and from tape.
KERNEL_READ_AHEAD_KIB: Final = 1024
# After cancellation requests under way have this time to be answered.
END_GRACE_S: Final = 5.0

KERNEL_LIMIT_KEPT: Final = "mount.kernel_limit_kept"

_BACKING_DEVICES: Final = Path("/sys/class/bdi")


def mount_options(
    volume_name: str, *, allow_other: bool, read_only: bool, kernel_flags: Iterable[str] = ()
) -> frozenset[str]:
    """Options for `serve`. What df(1) and mount(8) show as the source is `tapefs:NAME`, with
    characters that mount options cannot carry replaced by `_`.

    `kernel_flags` are nodev, noexec and the like; without them libfuse takes nodev and nosuid.
    Root's mounts are open to other users, as every mount of root is; permission bits hold.
    """
    shown = re.sub(r"[^A-Za-z0-9._+@:-]", "_", volume_name)
    options = {f"fsname=tapefs:{shown}", f"subtype={SUBTYPE}", "default_permissions"}
    options.update(kernel_flags)
    if allow_other or os.geteuid() == 0:
        options.add("allow_other")
    options.add("ro" if read_only else "rw")
    return frozenset(options)


async def serve(
    operations: Operations,
    mountpoint: Path,
    options: frozenset[str],
    on_ready: Callable[[], None],
    *,
    requests_max: int = REQUESTS_MAX,
) -> None:
    """Mount, answer requests, return when somebody unmounted.

    `on_ready()` is called once, when the mount answers. Cancellation unmounts (lazily, if files
    are still open): requests under way get `END_GRACE_S` to finish, then fail. When this returns
    or raises, nothing is mounted any more, every file is released and `operations` has finished.
    Raises MountpointUnusable or NoFuse before anything is mounted.
    """
    require_fuse(allow_other="allow_other" in options)
    resolved = prepare_mountpoint(mountpoint)
    negotiation = Negotiation()
    with taking_turns(negotiation):
        _mount(operations, resolved, options)
        try:
            await _answer_requests(operations, resolved, on_ready, requests_max)
        finally:
            negotiation.close()
            # No-op after an external umount; a lazy unmount otherwise.
            pyfuse3.close(unmount=True)
            with trio.CancelScope(shield=True):
                await operations.finish()
            # An aborted connection (/sys/fs/fuse/connections/N/abort) leaves the mount in place.
            detach_dead_mount(resolved)
            telemetry.event(telemetry.MOUNT_ENDED, mountpoint=resolved)


def _mount(operations: Operations, mountpoint: Path, options: frozenset[str]) -> None:
    try:
        pyfuse3.init(operations, str(mountpoint), set(options))
    except RuntimeError as exc:
        # libfuse has printed the reason to standard error; it hands out none.
        raise MountpointUnusable(f"cannot mount on {mountpoint}: {exc}") from exc


async def _answer_requests(
    operations: Operations, mountpoint: Path, on_ready: Callable[[], None], requests_max: int
) -> None:
    loop_scope = trio.CancelScope(shield=True)

    async def request_loop() -> None:
        with loop_scope:
            await pyfuse3.main(min_tasks=IDLE_TASKS_MAX, max_tasks=requests_max)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request_loop)
        try:
            # The first request negotiates the protocol and would undo what is set before it.
            await operations.initialized.wait()
            _raise_read_ahead(mountpoint)
            telemetry.event(telemetry.MOUNT_READY, mountpoint=mountpoint)
            on_ready()
            await trio.sleep_forever()
        finally:
            # Cancelled from outside, or on_ready raised; harmless when the loop ended by itself.
            loop_scope.deadline = trio.current_time() + END_GRACE_S
            pyfuse3.terminate()


def _raise_read_ahead(mountpoint: Path) -> None:
    """Set what no protocol can raise; needs root, and the mount works without it."""
    mount = mount_at(mountpoint)
    if mount is None or os.geteuid() != 0:
        return
    limit = _BACKING_DEVICES / mount.device / "read_ahead_kb"
    try:
        limit.write_text(str(KERNEL_READ_AHEAD_KIB))
    except OSError as exc:
        telemetry.event(KERNEL_LIMIT_KEPT, path=limit, reason=exc.strerror)
