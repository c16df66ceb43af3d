"""Whoever rested while scanning held back the extents of up to 256 shards at a time.

A scrub at a low rate, or one of a busy mount, does: on a small disk files were deleted, `df` called
their space free, and write(2) answered ENOSPC until the scrub had gone on. A client of the control
socket that reads one page of a list and waits did the same for minutes.
"""

from __future__ import annotations

from contextlib import aclosing

import trio

from shardfs.engine.layout import ExtentState
from shardfs.engine.pieces import Shard
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store
from shardfs.fuse.door import behind
from shardfs.fuse.keys import INODE_PREFIX
from shardfs.fuse.scrub import Scrub
from shardfs.limits import KIB, MIB
from tests.engine.stores import tidy_up
from tests.fuse.harness import Caller, opened_store, serving

FILE_BYTES = 2 * MIB
FILES = 16
FEW = 6


def pinned_extents(store: Store) -> int:
    return sum(bool(extent.pins) for extent in store._extents.all)


async def fill(caller: Caller, files: int = FILES) -> None:
    for number in range(files):
        await caller.create(f"file {number}", data=b"%08d" % number * (FILE_BYTES // 8))
    await caller.file_system.sync()


async def test_a_slow_scrub_holds_no_space_back() -> None:
    async with opened_store("engine", size_bytes=64 * MIB) as store, serving(store) as file_system:
        assert isinstance(store, Store)
        caller = Caller(file_system)
        await fill(caller)
        async with trio.open_nursery() as nursery:
            scrub = Scrub(store, lambda: 0)
            await scrub.handlers["scrub-start"]({"rate": 64 * KIB})
            nursery.start_soon(scrub.run)
            await trio.sleep(60)
            assert 0 < scrub.figures()["verified_bytes"] < FILES * FILE_BYTES
            assert pinned_extents(store) <= 1
            for number in range(FILES):
                await caller.unlink(f"file {number}")
            await trio.sleep(30)
            await fill(caller)
            nursery.cancel_scope.cancel()


async def test_a_shard_that_was_moved_while_a_scan_rested_can_be_read() -> None:
    async with opened_store("engine", size_bytes=64 * MIB) as store, serving(store) as file_system:
        assert isinstance(store, Store)
        caller = Caller(file_system)
        await fill(caller, FEW)
        before = {extent.index: extent.epoch for extent in store._extents.all}
        read = []
        async with aclosing(store.scan(INODE_PREFIX, behind(INODE_PREFIX))) as items:
            async for _, shard in items:
                if not isinstance(shard, Shard):
                    continue
                read.append(bytes(await store.read_shard(shard, 0, 8)))
                if len(read) == 1:
                    for number in range(0, FEW, 2):
                        await caller.unlink(f"file {number}")
                    await trio.sleep(30)
                    for extent in list(store._extents.all):
                        is_data = extent.stream in DATA_STREAMS and extent.live_bytes
                        if is_data and extent.state is ExtentState.SEALED:
                            await store._evacuator.evacuate(extent)
                            await tidy_up(store)
        after = {extent.index: extent.epoch for extent in store._extents.all}
        assert before != after, "nothing was given back"
        assert read == [b"%08d" % number for number in (0, *range(1, FEW, 2))]
