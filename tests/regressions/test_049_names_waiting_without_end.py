"""On a nearly full disk, where no name pages are written, what waited for them grew for ever.

What waited was counted by inode: a file that was renamed again and again kept all the names it had
ever had. And of changes that were given up each page stayed in memory until there was room. Found
by counting the memory that the server holds.
"""

from __future__ import annotations

import tracemalloc

import pytest
import trio

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.fuse import name_page, name_pages
from shardfs.fuse.name_pages import INTERVAL_S
from shardfs.limits import MIB
from tests.fuse.harness import Caller, serving

WAITING_MAX = 100
CHANGES = 40 * WAITING_MAX


@pytest.fixture(autouse=True)
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_page, "_FREE_SHARE_MIN", 1)
    monkeypatch.setattr(name_pages, "_WAITING_MANY", WAITING_MAX // 2)
    monkeypatch.setattr(limits, "WAITING_NAMES_MAX", WAITING_MAX)


async def test_one_file_under_ever_new_names() -> None:
    async with serving(ModelStore(64 * MIB)) as file_system:
        caller, pages = Caller(file_system), file_system.name_pages
        await caller.create("name 0")
        for number in range(3 * WAITING_MAX):
            await caller.rename(f"name {number}", f"name {number + 1}")
            assert pages.waiting_count <= WAITING_MAX
        assert not pages.is_complete


async def test_ever_new_files() -> None:
    async with serving(ModelStore(64 * MIB)) as file_system:
        pages = file_system.name_pages
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for ino in range(1 << 40, (1 << 40) + CHANGES):
                pages.changed({ino: None}, {(1, b"%d" % ino): None})
            held_bytes = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert held_bytes <= 2 * WAITING_MAX * limits.WAITING_NAME_MEMORY_BYTES
        await trio.sleep(3 * INTERVAL_S)  # and nobody stumbles over numbers that were never in use
