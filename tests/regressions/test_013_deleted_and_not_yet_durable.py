"""A full store refused new data although all it held had just been deleted.

The deletions were not durable yet, so no extent was dead; none was live in part either, so there
was nothing to move, and reclamation gave up without the commit that would have made them dead.
Found by tests/crash/test_refilling.py.
"""

from __future__ import annotations

from shardfs import limits
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError
from tests.engine.stores import formatted, opened

VALUE_BYTES = 9000


async def fill(store: Store) -> int:
    """How many values fit."""
    for number in range(1000):
        try:
            await store.put(b"key %d" % number, bytes(VALUE_BYTES))
        except NoSpaceError:
            return number
    raise AssertionError("the device never fills up")


async def test_what_was_just_deleted_makes_room_at_once() -> None:
    device = await formatted(2, extent_bytes=64 * limits.KIB)
    async with opened(device) as store:
        count = await fill(store)
        for number in range(count):
            await store.delete(b"key %d" % number)
        # Where an extent ends, a value is cut at a whole granule: what does not fit there varies.
        assert await fill(store) >= count - 1
