"""A repair, and the next mount, counted through all inode numbers there may ever have been.

Name pages were written anew for one range of numbers after the other, up to the next free number,
and all names were read for each. Numbers are never given out again, so a store that has lived long
has few in use and many that are not; and a damaged one any. Found by the damage campaign (a next
number of 2**62, with mended checksums).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio

from shardfs.checking.image_device import ImageDevice
from shardfs.engine.pieces import Entry
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.name_pages import NamePages
from shardfs.fuse.tables import Tables
from tests.engine.stores import MANUAL
from tests.fuse.damage_targets import make_ground
from tests.fuse.harness import FILE_MODE, Caller

FAR = 1 << 62
SCANS_MAX = 12


async def test_only_those_in_use_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = 0
    scan = Store.scan

    def counted(store: Store, start: bytes, end: bytes) -> AsyncGenerator[Entry, None]:
        nonlocal scans
        scans += 1
        assert scans < SCANS_MAX * 10
        return scan(store, start, end)

    image = bytearray((await make_ground()).image)
    async with Store.open(ImageDevice(image), options=MANUAL) as store:
        file_system = await FileSystem.open(store)
        file_system.tables._next_ino = file_system.tables._leased_ino = FAR
        await Caller(file_system).create("far", FILE_MODE, b"away")
        await file_system.end()
        tables = await Tables.open(store)
        assert tables.next_ino > FAR
        pages = await NamePages.open(store, tables)
        monkeypatch.setattr(Store, "scan", counted)
        with trio.fail_after(60):
            await pages.rebuild()
        assert pages.is_complete and scans <= SCANS_MAX
