"""Name pages were called complete although changes had been given up while they were rebuilt.

A mount after a kill writes every page anew, from the names that the tree has when it is asked.
What changes meanwhile waits for its page; when too much waits it is given up, and a page that was
written before the change goes on without it. Found by reading the code behind regression 046.
"""

from __future__ import annotations

import pytest
import trio

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.fuse import name_pages
from shardfs.fuse.keys import NAMES_KEY
from shardfs.limits import MIB
from tests.fuse.harness import Caller, serving

FILES = 100
WAITING_MAX = 10


@pytest.mark.parametrize("later_files", [0, WAITING_MAX // 2, 3 * WAITING_MAX])
async def test_complete_only_if_nothing_was_given_up(
    later_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(64 * MIB)
    async with serving(store) as file_system:
        for number in range(FILES):
            await Caller(file_system).create(f"file {number}")
    batch = store.batch()
    batch.delete(NAMES_KEY)  # as a mount that was killed leaves it
    store.apply(batch)
    monkeypatch.setattr(name_pages, "_WAITING_MANY", WAITING_MAX)
    monkeypatch.setattr(limits, "WAITING_NAMES_MAX", WAITING_MAX)
    monkeypatch.setattr(name_pages, "_ENTRIES_PER_SLICE", 1)  # the others get their turn
    async with serving(store, tasks=False) as file_system:
        caller, pages = Caller(file_system), file_system.name_pages
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pages.rebuild)
            await trio.lowlevel.checkpoint()
            for number in range(later_files):
                await caller.create(f"later {number}")
            assert not pages.is_complete, "the rebuild has ended before the changes"
        assert pages.is_complete is (later_files <= WAITING_MAX)
    marked = await store.get_record(NAMES_KEY) is not None
    assert marked is (later_files <= WAITING_MAX)
