"""fuse/errnos.py: each kind of trouble and its errno; nothing but FUSEError leaves a handler."""

from __future__ import annotations

import errno
from collections import defaultdict

import pyfuse3
import pytest
import trio

from shardfs import errors
from shardfs.errors import (
    CorruptionError,
    DeviceError,
    FileError,
    LimitError,
    NoSpaceError,
    ReadOnlyError,
    ShardfsError,
    StaleError,
    StoreClosedError,
)
from shardfs.fuse.durations import BUCKETS, Durations, no_durations
from shardfs.fuse.errnos import guarded, unanswered

TABLE: list[tuple[BaseException, int]] = [
    (FileError(errno.ENOTEMPTY), errno.ENOTEMPTY),
    (NoSpaceError("full"), errno.ENOSPC),
    (ReadOnlyError("asked for"), errno.EROFS),
    (CorruptionError("rot"), errno.EIO),
    (DeviceError("read", 0, 512, errno.ENXIO), errno.EIO),
    (LimitError("too long"), errno.EFBIG),
    (StoreClosedError("closed"), errno.EIO),
    (StaleError("a bug if it gets here"), errno.EIO),
    (KeyError("a bug"), errno.EIO),
    (AssertionError("a bug"), errno.EIO),
    (pyfuse3.FUSEError(errno.EXDEV), errno.EXDEV),
]


class Handlers:
    """Handlers that raise what they are told to."""

    def __init__(self) -> None:
        self.durations: dict[str, Durations] = defaultdict(no_durations)
        self.answers: dict[int, int] = defaultdict(int)
        self.met: list[Exception] = []

    async def meet(self, error: Exception) -> None:
        """See errnos.Counting."""
        self.met.append(error)

    @guarded
    async def asked(self, error: BaseException) -> int:
        """A request."""
        raise error

    @guarded
    async def sound(self, value: int) -> int:
        """A request without trouble."""
        return value

    @unanswered
    async def told(self, error: BaseException) -> None:
        """A request without an answer."""
        raise error


@pytest.mark.expected_warnings("failed: ", "met a bug")
@pytest.mark.parametrize(("error", "expected"), TABLE, ids=lambda value: type(value).__name__)
async def test_the_table(error: BaseException, expected: int) -> None:
    handlers = Handlers()
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await handlers.asked(error)
    assert raised.value.errno == expected
    expected_answers = {} if isinstance(error, pyfuse3.FUSEError) else {expected: 1}
    assert handlers.answers == expected_answers
    assert handlers.met == [error] or isinstance(error, pyfuse3.FUSEError)
    handlers = Handlers()
    await handlers.told(error)
    assert await handlers.sound(7) == 7
    assert {name: sum(each[:BUCKETS]) for name, each in handlers.durations.items()} == {
        "told": 1,
        "sound": 1,
    }


async def test_cancellation_passes() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await Handlers().told(await _cancelled())
    assert scope.cancelled_caught


async def _cancelled() -> BaseException:
    await trio.lowlevel.checkpoint()
    raise AssertionError("unreachable")


def test_every_exception_of_the_package_was_thought_of() -> None:
    """Those not in the table happen elsewhere than in a mount, or are the root of others."""
    elsewhere = {
        "ShardfsError",
        "NotShardfsError",
        "IncompatibleError",
        "DeviceBusyError",
        "DeviceTooSmallError",
        "UsageError",
        "RemoteError",
    }
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, ShardfsError)
    }
    assert kinds - {type(error).__name__ for error, _ in TABLE} == elsewhere
