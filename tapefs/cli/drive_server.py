"""What `tapefs cartridge serve` runs: a virtual drive on a port, until it is told to stop."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import trio

from tapefs.cli.terminal import Table, named_rows
from tapefs.emulator.descriptors import UsbIdentity
from tapefs.emulator.name import VirtualDriveName, open_cartridge
from tapefs.emulator.status import CheckConditionStatus
from tapefs.emulator.target import Target
from tapefs.emulator.usbip import UsbipServer
from tapefs.emulator.usbip_wire import BUS_ID, DEFAULT_PORT
from tapefs.errors import MediumFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tapefs.cli.terminal import Report, Terminal

_SHOW_EVERY_S: Final = 0.5


async def serve(
    name: VirtualDriveName, address: tuple[str, int], terminal: Terminal, *, once: bool
) -> None:
    """Serve the cartridge that `name` means at `address`, with its faults, until SIGTERM, Ctrl-C,
    or with `once` the first host has left. What the drive buffers is on the cartridge when this
    ends, however it ends.

    Raises UsageError when nobody can listen there, MediumFailed when the buffer cannot be written,
    and what `open_cartridge` raises.
    """
    # Also while the buffer is written: a signal that comes late must not cost what is in it.
    with (
        trio.open_signal_receiver(signal.SIGTERM) as signals,
        open_cartridge(name, create=False) as cartridge,
    ):
        target = Target(cartridge)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_at_signal, signals, nursery.cancel_scope)
                await _serve(target, name, address, terminal, once=once)
                nursery.cancel_scope.cancel()
        finally:
            _switch_off(target, name.path)


async def _serve(
    target: Target,
    name: VirtualDriveName,
    address: tuple[str, int],
    terminal: Terminal,
    *,
    once: bool,
) -> None:
    personality = target.personality
    with terminal.progress() as report:
        server = UsbipServer(
            target,
            identity=UsbIdentity.of(personality, target.serial),
            subclass=personality.usb_subclass,
            report=lambda sentence: report({"message": sentence}),
        )
        if name.faults is not None:
            name.faults.apply(target, server.device)
        listeners = await _listeners(*address)
        _announce(terminal, listeners, target, name.path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show_progress, server, report)
            await server.serve(listeners, once=once)
            nursery.cancel_scope.cancel()


async def _listeners(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return list(await trio.open_tcp_listeners(port, host=host))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"nobody can listen on {host}, port {port} ({reason}); choose another --listen"
        ) from error


def _announce(
    terminal: Terminal, listeners: list[trio.SocketListener], target: Target, path: Path
) -> None:
    host, port, *_ = listeners[0].socket.getsockname()
    about = {
        "file": str(path),
        "drive": f"{target.personality.vendor} {target.personality.product}",
        "serial": target.serial,
        "address": host,
        "port": port,
        "bus_id": BUS_ID,
    }
    name = "HOST" if host in ("0.0.0.0", "::") else host  # noqa: S104 - nobody binds to it here
    option = "" if port == DEFAULT_PORT else f"--tcp-port {port} "
    terminal.answer(
        about,
        Table("USB tape drive", named_rows({**about, "port": str(port)})),
        f"attach it, as root: modprobe vhci-hcd; usbip {option}attach -r {name} -b {BUS_ID}",
    )


async def _end_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _show_progress(server: UsbipServer, report: Report) -> None:
    while True:
        report({"done_bytes": server.moved_bytes})
        await trio.sleep(_SHOW_EVERY_S)


def _switch_off(target: Target, path: Path) -> None:
    try:
        target.eject()
    except CheckConditionStatus as error:
        raise MediumFailed(
            f"what the drive had in its buffer could not be written to {path}; "
            "the end of what was written to it last is lost"
        ) from error
