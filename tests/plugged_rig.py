"""A volume whose drive hangs on an emulated USB bus: cables to pull, cartridges to change."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import trio
from usb_rig import Bus
from volume_rig import Rig, User

from tapefs.config import Config
from tapefs.daemon.drives import UsbConnection
from tapefs.emulator.usb import EmulatedUsbBackend, UsbIdentity

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable
    from pathlib import Path

    from tapefs.emulator.device_server import DeviceServer
    from tapefs.emulator.reply import TargetReply
    from tapefs.emulator.target import Target

# Looks for the drive as often as it can; does not look after an idle one unless told to.
CONFIG = Config(
    settle_s=0.0, idle_s=3600.0, commit_s=0.01, drive_poll_s=0.001, drive_check_s=3600.0
)


class PluggedRig(Rig):
    """A `Rig` on the real stack: USB transport, pyusb, emulated bus, one drive at first."""

    def __init__(self, directory: Path, config: Config = CONFIG) -> None:
        super().__init__(directory, config=config)
        self.bus = Bus()
        self.connection = self._connect_over_usb
        # What the drive's USB side says, where it is not the drive's own.
        self.usb_serial: str | None = None

    def _connect_over_usb(self, target: Target) -> UsbConnection:
        serial = target.serial if self.usb_serial is None else self.usb_serial
        identity = UsbIdentity(serial=serial)
        self.bus.devices = [self.make_backend(target, identity)]
        return UsbConnection("usb", self.bus, settle_s=0.0)

    def make_backend(self, target: Target, identity: UsbIdentity) -> EmulatedUsbBackend:
        """The drive's own end of the wire."""
        return EmulatedUsbBackend(target, identity=identity)

    @property
    def drive(self) -> EmulatedUsbBackend:
        """The drive that the volume was mounted in."""
        return self.bus.devices[0]

    def pull_cable_when(self, trap: Callable[[bytes], bool]) -> None:
        """From now on the cable is pulled whenever the drive has executed such a command."""
        self.when_executed(trap, self.drive.unplug)

    def when_executed(self, trap: Callable[[bytes], bool], act: Callable[[], None]) -> None:
        """From now on `act` is called when the drive has executed a command of that kind."""
        device = self.drive.device
        device.server = _Trapped(device.server, trap, act)

    def trust_cable(self) -> None:
        """The end of `pull_cable_when`."""
        server = self.drive.device.server
        assert isinstance(server, _Trapped)
        self.drive.device.server = server.inner


class _Trapped:
    """A device server that lets something happen after some commands."""

    def __init__(
        self, inner: DeviceServer, trap: Callable[[bytes], bool], act: Callable[[], None]
    ) -> None:
        self.inner = inner
        self._trap = trap
        self._act = act

    def execute(self, cdb: bytes, data_out: bytes | memoryview | array[int]) -> TargetReply:
        reply = self.inner.execute(cdb, data_out)
        if self._trap(cdb):
            self._act()
        return reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def replug_for_ever(rig: PluggedRig, user: User) -> None:
    """Whenever the cable is out, and that was noticed, it is put in again. To be cancelled."""
    lane = user.volume.scheduler
    while True:
        await until(lambda: lane.away is not None and not rig.drive.device.plugged_in, 1e9)
        rig.drive.plug_in()


def impatient(config: Config) -> Config:
    """The same, but with an eye on an idle drive."""
    return dataclasses.replace(config, drive_check_s=0.001)


async def until(condition: Callable[[], bool], deadline_s: float = 10) -> None:
    """Wait for something that must come."""
    with trio.fail_after(deadline_s):
        while not condition():  # noqa: ASYNC110 - what is watched knows nothing of its watcher
            await trio.sleep(0.001)


async def until_away(user: User, saying: str = "") -> str:
    """The lane has noticed, and its sentence has `saying` in it; the whole sentence."""
    lane = user.volume.scheduler
    try:
        await until(lambda: lane.away is not None and saying in lane.away.sentence)
    except trio.TooSlowError:
        raise AssertionError(f"{saying!r} was not said, but {lane.away}") from None
    assert lane.away
    return lane.away.sentence


async def until_back(user: User) -> None:
    """The lane serves again."""
    await until(lambda: user.volume.scheduler.away is None)
