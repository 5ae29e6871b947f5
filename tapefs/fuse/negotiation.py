"""What is agreed with the kernel when a mount begins, beyond what pyfuse3 has words for.

pyfuse3 sets three of the flags in the answer to FUSE_INIT and hands the rest to nobody. So the
first request and its answer go through a socket of ours, put in the place of libfuse's descriptor
of /dev/fuse until libfuse has answered; what is sent on to the kernel then says as well

- FUSE_DONT_MASK: the kernel leaves the umask to us. Where a directory has a default ACL the umask
  does not count (acl(5)), and only whoever holds the ACL can know.
- how many buffered reads may be under way at a time. With the kernel's 12, twelve recalls stop
  every other reader.

Layouts and numbers are those of linux/fuse.h, protocol 7.13 and later. An answer that is not
understood goes on as it is.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

# Buffered reads that the kernel may have outstanding.
KERNEL_BACKGROUND_MAX: Final = 1100

_FUSE_INIT: Final = 26
_MAJOR: Final = 7
_MINOR_MIN: Final = 13
_DONT_MASK: Final = 1 << 6
# The least that the kernel wants of a buffer for a request (FUSE_MIN_READ_BUFFER).
_MESSAGE_BYTES_MAX: Final = 8192

# struct fuse_in_header: length, opcode, then what does not matter here; struct fuse_init_in:
# major, minor, read-ahead, flags.
_REQUEST: Final = struct.Struct("=II32x4I")
# struct fuse_out_header: length, error, unique; struct fuse_init_out: major, minor, read-ahead,
# flags, max_background, congestion_threshold.
_ANSWER: Final = struct.Struct("=IiQ4IHH")


class Negotiation:
    """The first request and its answer, by way of a socket. For one mount.

    Calls are made from the trio thread, in this order; none of them waits.
    """

    def __init__(self) -> None:
        self._request = b""
        self._device = -1
        self._ours: socket.socket | None = None

    def begin(self, fd: int) -> None:
        """Take the first request from `fd`, which is /dev/fuse and readable, and put a socket with
        the same request in its place."""
        self._request = os.read(fd, _MESSAGE_BYTES_MAX)
        self._device = os.dup(fd)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._ours.send(self._request)
            os.dup2(theirs.fileno(), fd, inheritable=False)

    @property
    def is_under_way(self) -> bool:
        """Whether the request was taken and the answer not yet passed on."""
        return self._ours is not None

    def finish(self, fd: int) -> None:
        """libfuse has answered: tell the kernel, and give `fd` back to /dev/fuse."""
        assert self._ours is not None
        answer = self._ours.recv(_MESSAGE_BYTES_MAX)
        os.write(self._device, agreed(self._request, answer))
        os.dup2(self._device, fd, inheritable=False)
        self.close()

    def close(self) -> None:
        """Hold nothing of the device any more, or the kernel takes the mount for alive."""
        if self._ours is not None:
            self._ours.close()
            os.close(self._device)
            self._ours = None


def agreed(request: bytes, answer: bytes) -> bytes:
    """`answer` to `request`, with what we ask for beyond libfuse as far as the kernel offers it."""
    if len(request) < _REQUEST.size or len(answer) < _ANSWER.size:
        return answer
    _, opcode, _, _, _, offered = _REQUEST.unpack_from(request)
    length, error, unique, major, minor, read_ahead, flags, _, _ = _ANSWER.unpack_from(answer)
    if opcode != _FUSE_INIT or error or major != _MAJOR or minor < _MINOR_MIN:
        return answer
    flags |= offered & _DONT_MASK
    limits = KERNEL_BACKGROUND_MAX, KERNEL_BACKGROUND_MAX
    header = _ANSWER.pack(length, error, unique, major, minor, read_ahead, flags, *limits)
    return header + answer[_ANSWER.size :]
