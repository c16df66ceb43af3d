"""Name pages of removed files stayed, and with them their space, until the next mount.

When very many names wait to be written to their pages they are given up, removals among them: the
pages went on telling of files that were gone. Found by filling and emptying a disk of 1 GiB with
small files twenty times: each cycle took a little less than the one before.
"""

from __future__ import annotations

import pytest
import trio

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.fuse import name_pages
from shardfs.fuse.door import behind, scan_some
from shardfs.fuse.keys import NAME_PAGE_PREFIX
from shardfs.fuse.name_pages import INTERVAL_S
from shardfs.limits import MIB
from tests.fuse.harness import Caller, serving

FILES = 400
WAITING_MAX = 60


async def pages_of(store: ModelStore) -> int:
    return len(await scan_some(store, NAME_PAGE_PREFIX, behind(NAME_PAGE_PREFIX), FILES))


@pytest.mark.parametrize("stay", [0, 1], ids=["all go", "one stays"])
async def test_pages_go_with_their_files(stay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(64 * MIB)
    async with serving(store) as file_system:
        caller, pages = Caller(file_system), file_system.name_pages
        for number in range(FILES):
            await caller.create(f"file {number}")
        await trio.sleep(3 * INTERVAL_S)
        assert await pages_of(store) > FILES // 40
        monkeypatch.setattr(name_pages, "_WAITING_MANY", WAITING_MAX)
        monkeypatch.setattr(limits, "WAITING_NAMES_MAX", WAITING_MAX)
        for number in range(stay, FILES):
            await caller.unlink(f"file {number}")
        assert not pages.is_complete, "nothing was given up"
        await trio.sleep(3 * INTERVAL_S)
        assert await pages_of(store) == stay
