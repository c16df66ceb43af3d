"""A shrink that ^C broke into could leave a device that nothing could open.

Between the new size and the fresh superblock logs that begin with it, Python raises
KeyboardInterrupt wherever it likes, shielded or not. The store was closed in good order then, with
a record of the new size behind a snapshot of the old one: "extent 50 is named, and there are 50".
Found by a run of all tests on a busy machine.
"""

from __future__ import annotations

import pytest

from shardfs import limits
from shardfs.engine.resizing import grow
from shardfs.engine.shrinking import Shrinking
from shardfs.engine.store import Store
from shardfs.engine.superblock import Superblock
from tests.engine.stores import content, formatted, opened

EXTENT = 64 * limits.KIB
EXTENTS = (24, 32)


class BrokenOffError(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


async def resize(store: Store, extent_count: int) -> None:
    if extent_count > store.identity.extent_count:
        await grow(store, extent_count * EXTENT)
        return
    shrinking = Shrinking(store, extent_count * EXTENT)
    while (await shrinking.step()).result is None:
        pass


@pytest.mark.expected_warnings("was broken off", "without a clean record")
@pytest.mark.parametrize("calls", range(3), ids=["before", "first copy", "second copy"])
@pytest.mark.parametrize("before", EXTENTS, ids=["grow", "shrink"])
async def test_one_size_or_the_other_is_left(
    before: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = sum(EXTENTS) - before
    device = await formatted(before * EXTENT / limits.MIB, extent_bytes=EXTENT)
    device.medium_bytes = max(EXTENTS) * EXTENT
    names = ["start_logs", "_give_up", "_give_up"]
    real, counted = getattr(Superblock, names[calls]), 0

    async def broken_off(self: Superblock, *arguments: object) -> None:
        nonlocal counted
        counted += 1
        if counted >= max(calls, 1):
            raise BrokenOffError
        await real(self, *arguments)

    with pytest.raises(BaseException) as raised, monkeypatch.context() as patch:
        async with opened(device) as store:
            await store.put(b"key", b"value")
            await store.sync()
            patch.setattr(Superblock, names[calls], broken_off)
            await resize(store, after)
    assert isinstance(raised.value, BrokenOffError) or raised.group_contains(BrokenOffError)
    async with opened(device) as store:
        assert store.identity.extent_count in EXTENTS
        assert await content(store) == {b"key": b"value"}
        await store.checkpoint()
    async with opened(device) as store:
        assert await content(store) == {b"key": b"value"}
