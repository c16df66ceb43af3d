"""An unmounted device or image that this process opens itself, to answer questions about it.

Role: the half of targets.py that needs the store and the file system.

Not here: what the user named (targets.py), the questions (inspection.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from shardfs.engine.block_device import open_device
from shardfs.engine.options import StoreOptions
from shardfs.engine.recovery import read_superblock
from shardfs.engine.store import Store
from shardfs.fuse.inspection import Inspection


@asynccontextmanager
async def open_disk(
    name: str, *, change: bool, tolerant: bool
) -> AsyncIterator[tuple[Inspection, tuple[str, ...]]]:
    """Answers, and what opening the device had to say; see open_target.

    Raises:
        NotShardfsError, IncompatibleError, CorruptionError, DeviceBusyError
    """
    path = await trio.Path(name).resolve()
    device = open_device(path, read_only=not change)
    try:
        record = (await read_superblock(device)).record
        clean = record.clean or record.incarnation == 0
        options = StoreOptions(read_only=not change, background=False, tolerant=tolerant)
        async with Store.open(device, options=options) as store:
            facts = {
                "clean": clean,
                "health": "damaged" if store.damage else "healthy",
                "reason": store.damage,
            }
            inspection = Inspection(store, device.path, facts=facts)
            try:
                yield inspection, store.notes
            finally:
                with trio.move_on_after(1, shield=True):
                    await inspection.aclose()
    finally:
        device.close()
