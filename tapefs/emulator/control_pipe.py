"""Endpoint 0 of the emulated drive: standard requests (USB 2.0 §9.4) and Bulk-Only's own two."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from tapefs.emulator import descriptors
from tapefs.emulator.wire_faults import Stall
from tapefs.usb.bot import Pipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapefs.emulator.bot_device import BotDevice

SETUP_BYTES: Final = 8

_SETUP: Final = struct.Struct("<BBHHH")
_ENDPOINT_HALT: Final = 0
_PIPES: Final = {descriptors.IN_ADDRESS: Pipe.IN, descriptors.OUT_ADDRESS: Pipe.OUT}
_FOR_INTERFACE: Final = 1
_ADDRESSEE: Final = 0x1F


@dataclass(frozen=True, slots=True)
class Setup:
    """One setup packet (USB 2.0 §9.3)."""

    request_type: int
    request: int
    value: int
    index: int
    length_bytes: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the 8 bytes on the wire."""
        return cls(*_SETUP.unpack(data))


class ControlPipe:
    """Answers control requests for a `BotDevice`. May be called from any thread, one at a time."""

    def __init__(self, device: BotDevice, identity: descriptors.UsbIdentity) -> None:
        self._device: Final = device
        self._identity: Final = identity
        self._configuration = 0
        # By bmRequestType and bRequest.
        self._handlers: Final[dict[tuple[int, int], Callable[[Setup], bytes]]] = {
            (0x80, 0x00): lambda _: b"\0\0",  # GET STATUS: bus powered, wakes nobody up
            (0x81, 0x00): lambda _: b"\0\0",
            (0x82, 0x00): self._endpoint_status,
            (0x02, 0x01): self._clear_halt,
            (0x00, 0x05): lambda _: b"",  # SET ADDRESS: who emulates the bus keeps addresses
            (0x80, 0x06): self._descriptor,
            (0x80, 0x08): lambda _: bytes((self._configuration,)),
            (0x00, 0x09): self._set_configuration,
            (0x81, 0x0A): lambda _: b"\0",  # GET INTERFACE: there is no other setting
            (0x01, 0x0B): self._set_interface,
            (0xA1, 0xFE): lambda _: bytes((self._device.max_lun,)),  # GET MAX LUN
            (0x21, 0xFF): self._class_reset,
        }

    def request(self, setup: Setup) -> bytes:
        """Carry out one request; what it answers, cut to the length asked for.

        Raises Stall for what the device does not know or cannot do, Silence, Unplugged.
        """
        handler = self._handlers.get((setup.request_type, setup.request))
        wrong_interface = setup.request_type & _ADDRESSEE == _FOR_INTERFACE and setup.index
        if handler is None or wrong_interface:
            raise Stall
        return handler(setup)[: setup.length_bytes]

    def _descriptor(self, setup: Setup) -> bytes:
        kind, index = divmod(setup.value, 0x100)
        device, identity = self._device, self._identity
        found = None
        if kind == descriptors.STRING_TYPE:
            found = descriptors.string_descriptor(identity, index)
        elif (kind, index) == (descriptors.DEVICE_TYPE, 0):
            found = descriptors.device_descriptor(identity)
        elif (kind, index) == (descriptors.CONFIGURATION_TYPE, 0):
            found = descriptors.configuration_descriptor(device.subclass, device.max_packet_bytes)
        if found is None:
            raise Stall
        return found

    def _set_configuration(self, setup: Setup) -> bytes:
        # Every reset of a port ends with this request, and over USB/IP it is all that arrives of
        # one: the host's virtual hub keeps the reset itself to itself.
        if setup.value not in (0, descriptors.CONFIGURATION_VALUE):
            raise Stall
        self._device.port_reset()
        self._configuration = setup.value
        return b""

    def _set_interface(self, setup: Setup) -> bytes:
        if setup.value:
            raise Stall
        for pipe in Pipe:
            self._device.clear_halt(pipe)
        return b""

    def _endpoint_status(self, setup: Setup) -> bytes:
        if setup.index & 0x0F == 0:
            return b"\0\0"
        return bytes((self._device.is_halted(_pipe(setup)), 0))

    def _clear_halt(self, setup: Setup) -> bytes:
        if setup.value != _ENDPOINT_HALT:
            raise Stall
        if setup.index & 0x0F:
            self._device.clear_halt(_pipe(setup))
        return b""

    def _class_reset(self, _setup: Setup) -> bytes:
        self._device.class_reset()
        return b""


def _pipe(setup: Setup) -> Pipe:
    pipe = _PIPES.get(setup.index)
    if pipe is None:
        raise Stall
    return pipe
