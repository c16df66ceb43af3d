"""On a nearly full disk each change of a name looked at all names that waited to be written.

Name pages are written only while there is plenty of space. When thousands of names waited and there
was none, every further change woke the task that writes them, which sorted all that waited, found
no room, and went back to sleep: the last files of a disk, and the first that were removed from it,
cost ten times as much processor time as others.
"""

from __future__ import annotations

import pytest
import trio

from shardfs.checking.models.store_model import ModelStore
from shardfs.fuse import name_pages
from shardfs.fuse.name_pages import INTERVAL_S, NamePages
from shardfs.limits import KIB, MIB
from tests.fuse.harness import Caller, serving

FILES = 100
RENAMES = 400


async def test_names_wait_for_room_without_being_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(name_pages, "_WAITING_MANY", FILES // 4)
    real_write = NamePages.write
    writes = 0

    async def write(self: NamePages) -> None:
        nonlocal writes
        writes += 1
        await real_write(self)

    monkeypatch.setattr(NamePages, "write", write)
    store = ModelStore(16 * MIB)
    async with serving(store) as file_system:
        caller, pages = Caller(file_system), file_system.name_pages
        large = await caller.create("large")
        at = 0
        while store.space().free_bytes * 40 > store.space().total_bytes:
            await file_system.writeback.write(large, at, b"x" * 64 * KIB)
            at += 64 * KIB
        await file_system.writeback.flush(large)
        for number in range(FILES):
            await caller.create(f"file {number}")
        began, writes = trio.current_time(), 0
        for number in range(RENAMES):
            await caller.rename(f"file {number % FILES}", "moving")
            await caller.rename("moving", f"file {number % FILES}")
            await trio.lowlevel.checkpoint()
        assert pages.waiting_count >= FILES
        assert writes <= 2 + (trio.current_time() - began) / INTERVAL_S
        await caller.unlink("large")
        await trio.sleep(3 * INTERVAL_S)
        assert pages.waiting_count == 0
        assert pages.is_complete
