"""What kernel and server agree on when a mount begins, beyond what libfuse can be told.

Role: FUSE begins with one message of the kernel, INIT, which offers abilities, and one answer,
which says what shall be used. libfuse writes that answer, and neither it nor pyfuse3 lets us
choose all of it. So for this one exchange a pair of sockets takes the place of the FUSE device:
libfuse gets the kernel's message through it, its answer is amended (`amended`) and passed on, and
then the device is put back under the same descriptor. Requests never pass through here.

Invariants:
    I1. Nothing is agreed to that the kernel did not offer; an answer that does not look as
        expected is passed on as it is.
    I2. The kernel gets exactly one answer, before any request is read.

What is amended, and what for:

- HANDLE_KILLPRIV_V2: set-user-ID bits are ours to take away (operations.py does), and the kernel
  may remember that a file has no file capabilities. Without it a write(2) is a GETXATTR and a
  WRITE; with it only the first after attributes were told.
- EXPLICIT_INVAL_DATA in place of AUTO_INVAL_DATA: what the kernel has cached of a file stays
  although mtime and size have changed. Nobody but this kernel changes them, through that cache.
- DONT_MASK with POSIX_ACL: the mode of a new file comes as the program asked for it, with the
  umask beside, which does not count below a default access list.
- more requests of its own accord at once (read-ahead) than the kernel's 12.

Not here: libfuse's mount options (session.py).
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Final

from shardfs import limits

DONT_MASK: Final = 1 << 6
AUTO_INVAL_DATA: Final = 1 << 12
POSIX_ACL: Final = 1 << 20
EXPLICIT_INVAL_DATA: Final = 1 << 25
HANDLE_KILLPRIV_V2: Final = 1 << 28

_INIT: Final = 26
_MESSAGE_BYTES_MAX: Final = 1 * limits.MIB + 64 * limits.KIB
_REPLY_BYTES_MAX: Final = 4 * limits.KIB
# Where fields are: fuse_in_header and fuse_init_in, fuse_out_header and fuse_init_out.
_OPCODE_AT: Final = 4
_OFFERED_AT: Final = 52
_ERROR_AT: Final = 4
_FLAGS_AT: Final = 28
_BACKGROUND_AT: Final = 32
_CONGESTION_AT: Final = 34
_OUT_BYTES_MIN: Final = 36


class Handshake:
    """The exchange of one mount. Create with `begin` once libfuse has mounted.

    Args:
        descriptor: the one that libfuse uses; for now an end of a pair of sockets.
        device: the kernel's end.
        peer: the other end of the pair.
        message: what the kernel has said.
    """

    def __init__(self, descriptor: int, device: int, peer: socket.socket, message: bytes) -> None:
        self.descriptor = descriptor
        self._device = device
        self._peer = peer
        self._message = message

    @classmethod
    def begin(cls, descriptor: int) -> Handshake:
        """Read the kernel's message and give it to libfuse.

        Args:
            descriptor: libfuse's, of the FUSE device.

        Raises:
            OSError: the kernel has let go of the mount already.
        """
        message = os.read(descriptor, _MESSAGE_BYTES_MAX)
        peer, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            device = os.dup(descriptor)
            os.dup2(end.fileno(), descriptor, inheritable=False)
        peer.send(message)
        return cls(descriptor, device, peer, message)

    @property
    def offers_access_lists(self) -> bool:
        """The kernel can enforce access lists, and leaves the umask to us."""
        wanted = POSIX_ACL | DONT_MASK
        return _number(self._message, _OFFERED_AT, 4) & wanted == wanted

    def finish(self) -> None:
        """Put the device back and pass libfuse's answer on. Requires: libfuse has answered."""
        try:
            reply = self._peer.recv(_REPLY_BYTES_MAX, socket.MSG_DONTWAIT)
            os.dup2(self._device, self.descriptor, inheritable=False)
            os.write(self._device, amended(self._message, reply))
        finally:
            self.close()

    def close(self) -> None:
        """Let go of what is not needed any more."""
        self._peer.close()
        if self._device >= 0:
            os.close(self._device)
            self._device = -1


def amended(message: bytes, reply: bytes) -> bytes:
    """libfuse's answer to INIT, with what we want besides (I1)."""
    if (
        _number(message, _OPCODE_AT, 4) != _INIT
        or len(reply) < _OUT_BYTES_MIN
        or _number(reply, _ERROR_AT, 4)
    ):
        return reply
    offered = _number(message, _OFFERED_AT, 4)
    flags = _number(reply, _FLAGS_AT, 4) | HANDLE_KILLPRIV_V2 & offered
    if flags & POSIX_ACL:
        flags |= DONT_MASK & offered
    if offered & EXPLICIT_INVAL_DATA:
        flags = flags & ~AUTO_INVAL_DATA | EXPLICIT_INVAL_DATA
    answer = bytearray(reply)
    _put(answer, _FLAGS_AT, 4, flags)
    background = max(_number(reply, _BACKGROUND_AT, 2), limits.BACKGROUND_REQUESTS_MAX)
    _put(answer, _BACKGROUND_AT, 2, background)
    _put(answer, _CONGESTION_AT, 2, background * 3 // 4)
    return bytes(answer)


def fuse_descriptor() -> int:
    """The descriptor of the one FUSE device that this process has open, or -1."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
        except FileNotFoundError:
            continue  # the listing's own
    return -1


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], sys.byteorder)


def _put(data: bytearray, at: int, size: int, number: int) -> None:
    data[at : at + size] = number.to_bytes(size, sys.byteorder)
