"""What a device server answers to one command: the word between the target and its wire."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TargetReply:
    """Outcome of one command as the device sees it; the wire makes data, residue and status of it.

    `good` False means CHECK CONDITION: the sense data waits for the next REQUEST SENSE.
    `data_in` is what the device wants to send, bounded by the CDB alone (the wire compares it with
    what the host expects); the wire may keep reading it until the next command is executed.
    `consumed_bytes` is how much of the data sent by the host was processed (SSC: recorded or
    buffered), for the residue in the status block.
    """

    good: bool
    data_in: bytes | bytearray | memoryview = b""
    consumed_bytes: int = 0
