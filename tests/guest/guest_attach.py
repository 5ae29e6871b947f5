"""Runs in the guest: what `usbip attach` does, without that tool. `attach.py HOST PORT`.

Asks for the device, hands the connection to vhci-hcd, and waits for the kernel to find it.
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

VHCI = Path("/sys/devices/platform/vhci_hcd.0")
BUS_ID = b"1-1"


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        assert chunk, "the server hung up"
        data += chunk
    return data


def attach(host: str, port: int) -> None:
    connection = socket.create_connection((host, port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(struct.pack(">HHI32s", 0x0111, 0x8003, 0, BUS_ID))
    version, code, status = struct.unpack(">HHI", receive(connection, 8))
    assert (version, code, status) == (0x0111, 3, 0), (version, code, status)
    bus, address, speed = struct.unpack_from(">III", receive(connection, 312), 256 + 32)
    connection.settimeout(None)
    command = f"0 {connection.fileno()} {bus << 16 | address} {speed}"
    (VHCI / "attach").write_text(command)


if __name__ == "__main__":
    attach(sys.argv[1], int(sys.argv[2]))
