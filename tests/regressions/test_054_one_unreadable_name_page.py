"""One name page that could not be read kept all pages behind it from being written.

Pages are written in the order of their numbers, and a read error ended it, each time at the same
page; so did the next mount's comparison of all pages with the tree. Rot of a page was known to be
the page's own trouble, a bad sector was not. Found by an experiment.
"""

from __future__ import annotations

import pytest
import trio

from shardfs.checking.faults import Fault
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.fuse.keys import NAMES_KEY, name_page_key
from shardfs.fuse.name_pages import INTERVAL_S
from shardfs.fuse.records import INODES_PER_NAME_PAGE
from shardfs.limits import MIB
from tests.fuse.harness import Caller, serving

SIZE_BYTES = 64 * MIB
PAGES = 6


async def pages_of(store: Store) -> list[int]:
    return [page for page in range(PAGES) if await store.get_shard(name_page_key(page))]


async def make_unreadable(device: SimulatedDevice, store: Store, page: int) -> None:
    shard = await store.get_shard(name_page_key(page))
    assert shard is not None
    locator = shard.pieces[0].locator
    start = store.identity.extent_offset(locator.extent) + locator.offset
    device.faults.add(Fault("read", start, start + 4096, times=None))


@pytest.mark.expected_warnings("a name page cannot be read")
async def test_the_others_are_written() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await format_device(device, plan(SIZE_BYTES, 512))
    async with Store.open(device, options=StoreOptions()) as store:
        async with serving(store) as file_system:
            caller = Caller(file_system)
            for number in range(2 * INODES_PER_NAME_PAGE - 4):
                await caller.create(f"first {number}")
            await trio.sleep(3 * INTERVAL_S)
            await store.sync()
            assert await pages_of(store) == [0, 1]
            await make_unreadable(device, store, 1)
            await caller.rename(f"first {INODES_PER_NAME_PAGE}", "renamed")
            for number in range((PAGES - 2) * INODES_PER_NAME_PAGE):
                await caller.create(f"then {number}")
            await trio.sleep(3 * INTERVAL_S)
            assert await pages_of(store) == list(range(PAGES))
            assert not file_system.name_pages.is_complete, "the page was begun anew"
            await store.sync()
            await make_unreadable(device, store, 2)
        assert await store.get_record(NAMES_KEY) is None
        async with serving(store) as file_system:
            await trio.sleep(3 * INTERVAL_S)
            assert file_system.name_pages.is_complete
        assert await store.get_record(NAMES_KEY) is not None
