"""A truncation that was refused had dropped the buffered bytes beyond the new end all the same.

Found by conformance of files and shrunk to one client that writes a byte and truncates, while a
sync, whose flush fails, turns the store read-only between the two halves of the truncation:
create 1 3; fault 2 0 0; sync; create 0 0; write 1 3 0 0; truncate 1 3 0 (seed 21214).
"""

from __future__ import annotations

import pytest

from shardfs.checking.models.store_model import ModelStore
from shardfs.errors import ReadOnlyError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.namespace import Update
from tests.fuse.harness import Caller


async def test_a_refused_truncation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore()
    file_system = await FileSystem.open(store)
    caller = Caller(file_system)
    ino = await caller.create("a", data=b"buffered")

    async def fail_meanwhile(_: int) -> None:
        store.fail_device()

    monkeypatch.setattr(file_system.files, "finish_truncation", fail_meanwhile)
    with pytest.raises(ReadOnlyError):
        await file_system.namespace.set_attributes(ino, Update(size=3), privileged=True)
    assert await caller.read("a") == b"buffered"
