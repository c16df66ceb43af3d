"""fuse/handshake.py: what is amended in the answer to INIT, and how it gets to the kernel."""

from __future__ import annotations

import os
import socket
import sys

from shardfs import limits
from shardfs.fuse import handshake
from shardfs.fuse.handshake import Handshake, amended

LIBFUSE_FLAGS = handshake.AUTO_INVAL_DATA | 1 << 18
EVERYTHING = (1 << 31) - 1


def fields(*parts: tuple[int, int]) -> bytes:
    """Numbers one after the other, each given with its size in bytes."""
    return b"".join(number.to_bytes(size, sys.byteorder) for number, size in parts)


def init_message(flags: int, opcode: int = 26) -> bytes:
    header = fields((56, 4), (opcode, 4), (1, 8), (0, 8), (0, 4), (0, 4), (0, 4), (0, 4))
    return header + fields((7, 4), (40, 4), (131072, 4), (flags, 4))


def init_answer(flags: int = LIBFUSE_FLAGS, error: int = 0, background: int = 0) -> bytes:
    header = fields((80, 4), (error & 0xFFFFFFFF, 4), (1, 8))
    body = fields((7, 4), (38, 4), (131072, 4), (flags, 4), (background, 2), (0, 2))
    return header + body + bytes(range(44))


def test_what_the_kernel_offers_is_used() -> None:
    answer = amended(init_message(EVERYTHING), init_answer())
    wanted = handshake.HANDLE_KILLPRIV_V2 | handshake.EXPLICIT_INVAL_DATA | 1 << 18
    background = limits.BACKGROUND_REQUESTS_MAX
    expected = bytearray(init_answer(wanted, background=background))
    expected[34:36] = fields((background * 3 // 4, 2))
    assert answer == expected


def test_access_lists_come_with_the_umask() -> None:
    asked = init_answer(LIBFUSE_FLAGS | handshake.POSIX_ACL)
    for offered, expected in ((EVERYTHING, handshake.DONT_MASK), (handshake.POSIX_ACL, 0)):
        answer = amended(init_message(offered), asked)
        flags = int.from_bytes(answer[28:32], sys.byteorder)
        assert flags & handshake.POSIX_ACL and flags & handshake.DONT_MASK == expected
    without = int.from_bytes(amended(init_message(EVERYTHING), init_answer())[28:32], sys.byteorder)
    assert not without & handshake.DONT_MASK


def test_nothing_is_agreed_to_that_was_not_offered() -> None:
    answer = amended(init_message(0), init_answer())
    assert answer[28:32] == fields((LIBFUSE_FLAGS, 4))
    assert answer[:28] == init_answer()[:28] and answer[36:] == init_answer()[36:]


def test_what_looks_otherwise_is_passed_on() -> None:
    for message, answer in (
        (init_message(EVERYTHING), init_answer(error=-71)),
        (init_message(EVERYTHING), init_answer()[:24]),
        (init_message(EVERYTHING, opcode=3), init_answer()),
        (b"", b""),
    ):
        assert amended(message, answer) == answer


def test_the_device_is_back_afterwards() -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        kernel.send(init_message(EVERYTHING))
        exchange = Handshake.begin(device.fileno())
        assert os.read(device.fileno(), 4096) == init_message(EVERYTHING)
        os.write(device.fileno(), init_answer())
        exchange.finish()
        assert kernel.recv(4096) == amended(init_message(EVERYTHING), init_answer())
        kernel.send(b"a request")
        assert os.read(device.fileno(), 4096) == b"a request"
        assert not os.get_inheritable(device.fileno())
        exchange.close()
