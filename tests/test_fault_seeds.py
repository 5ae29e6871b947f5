"""Random fault plans under a whole volume, through the USB stack: nothing acknowledged is lost.

Broken wires, bad blocks, resets and pulled cables under programs that write, sync and read; then a
mount with a good drive has to show everything that was acknowledged, and so has one elsewhere.
`TAPEFS_FAULT_SEEDS=N` tries N plans instead of ten.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any

import trio
from crash_rig import logs_expected, scratch
from test_device_faults import survive
from usb_rig import Unthreaded

from tapefs.emulator.fault_plan import FaultPlan, seeded
from tapefs.emulator.usb import EmulatedUsbBackend
from tapefs.usb.device import open_endpoints
from tapefs.usb.transport import BotTransport

if TYPE_CHECKING:
    from tapefs.emulator.target import Target

SEED_COUNT = int(os.environ.get("TAPEFS_FAULT_SEEDS", "10"))


class Wires:
    """Makes the wire to a target, failing as a seed has it, and counts what struck."""

    def __init__(self) -> None:
        self.struck = 0
        self._devices: list[Any] = []

    def __call__(self, target: Target, seed: int) -> Any:
        backend = EmulatedUsbBackend(target)
        plan = FaultPlan.parse("\n".join(seeded(seed)))
        plan.apply(target, backend.device)
        self._devices.append((backend.device, target, len(plan.wire) + len(plan.unit)))
        return BotTransport(Unthreaded(open_endpoints("usb", backend)), settle_s=0)

    def count(self) -> None:
        """Take stock of the drives made since the last time; none of them saw a broken rule."""
        for device, target, planned in self._devices:
            left = len(device.faults._faults) + len(target.unit_faults._faults)
            self.struck += planned - left
            assert device.violations == []
        self._devices.clear()


def test_random_plans_under_a_volume() -> None:
    wires = Wires()
    failures = []
    with logs_expected(up_to=logging.ERROR):
        for seed in range(SEED_COUNT):
            with scratch() as directory:
                wire = functools.partial(wires, seed=seed)
                try:
                    trio.run(survive, directory, wire, lambda _: None)
                    wires.count()
                except BaseException as exc:  # noqa: BLE001 - whatever it is, it is a finding
                    while isinstance(exc, BaseExceptionGroup):
                        exc = exc.exceptions[0]
                    failures.append(f"seed {seed}: {exc!r}; {seeded(seed)}")
    print(f"{SEED_COUNT} plans tried, {wires.struck} faults struck")
    assert not failures, "\n".join(failures)
    assert wires.struck > SEED_COUNT // 3
