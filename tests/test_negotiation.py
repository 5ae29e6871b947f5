"""What goes beyond libfuse in the answer to the first request, and what never may."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from tapefs.fuse.negotiation import KERNEL_BACKGROUND_MAX, Negotiation, agreed

DONT_MASK = 1 << 6
ASYNC_READ = 1 << 0
REST = bytes(range(40))


def request(*, opcode: int = 26, offered: int = DONT_MASK | ASYNC_READ) -> bytes:
    head = struct.pack("=IIQQIIIHH", 56, opcode, 2, 0, 0, 0, 0, 0, 0)
    return head + struct.pack("=4I", 7, 38, 131072, offered) + bytes(44)


def answer(*, error: int = 0, major: int = 7, minor: int = 36, flags: int = ASYNC_READ) -> bytes:
    head = struct.pack("=IiQ", 80, error, 2)
    return head + struct.pack("=4IHH", major, minor, 65536, flags, 0, 0) + REST


def test_what_the_kernel_offers_is_asked_for_and_the_rest_stays() -> None:
    sent = agreed(request(), answer())
    assert sent[:28] == answer()[:28]
    assert struct.unpack_from("=IHH", sent, 28) == (
        DONT_MASK | ASYNC_READ,
        KERNEL_BACKGROUND_MAX,
        KERNEL_BACKGROUND_MAX,
    )
    assert sent[36:] == REST


def test_what_the_kernel_does_not_offer_is_not_asked_for() -> None:
    sent = agreed(request(offered=ASYNC_READ), answer())
    assert struct.unpack_from("=I", sent, 28) == (ASYNC_READ,)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (request(opcode=1), answer()),
        (request(), answer(error=-errno.EPROTO)),
        (request(), answer(major=8)),
        (request(), answer(minor=12)),
        (request(), answer()[:24]),
        (request()[:48], answer()),
        (b"", b""),
    ],
)
def test_what_is_not_understood_goes_on_as_it_is(asked: bytes, answered: bytes) -> None:
    assert agreed(asked, answered) == answered


def test_a_mount_that_ends_before_the_answer_leaves_nothing_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    device, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device, kernel:
        kernel.send(request())
        negotiation = Negotiation()
        negotiation.begin(device.fileno())
        # What libfuse sees is the same request.
        assert device.recv(8192) == request()
        negotiation.close()
        negotiation.close()
        kernel.setblocking(False)
        assert kernel.recv(1) == b"", "the kernel's end is still held"
    assert set(os.listdir("/proc/self/fd")) <= before
