"""Image files with a small tree of files, made without a mount.

Role: what the inspecting commands are tried on. The same call gives the same files each time.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import trio

from shardfs import limits
from shardfs.engine import open_device
from shardfs.engine.images import create_image
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from tests.fuse.harness import Caller

SAMPLE_BYTES = 32 * limits.MIB


def make_sample(path: Path, *, seed: int = 1, size_bytes: int = SAMPLE_BYTES) -> dict[str, bytes]:
    """A new image at `path`, with a run of the tree, a delta log, garbage and holes.

    Returns:
        The content of each file by path, in the order in which they were made.
    """
    create_image(path, size_bytes)
    return trio.run(partial(_fill, path, seed))


async def _fill(path: Path, seed: int) -> dict[str, bytes]:
    device = open_device(path)
    try:
        await format_device(device, plan(device.size_bytes, device.sector_bytes, label="sample"))
        async with Store.open(device, options=StoreOptions(background=False)) as store:
            file_system = await FileSystem.open(store, uid=1000, gid=100)
            files = await _work(file_system, random.Random(seed))
            await file_system.end()
        return files
    finally:
        device.close()


async def _work(file_system: FileSystem, chance: random.Random) -> dict[str, bytes]:
    caller = Caller(file_system)
    write, sync = file_system.writeback.write, file_system.sync
    files = {"photo": chance.randbytes(700_000), "notes/todo": b"buy milk\n"}
    await caller.mkdir("notes")
    for name, data in files.items():
        await caller.create(name, data=data)
    sparse = await caller.create("notes/sparse", data=b"begin")
    await write(sparse, limits.SHARD_BYTES + 12_345, b"end")
    files["notes/sparse"] = b"begin".ljust(limits.SHARD_BYTES + 12_345, b"\0") + b"end"
    await caller.create("notes/gone", data=chance.randbytes(90_000))
    await file_system.namespace.create(ROOT_INO, b"link", 0o120777, 1000, 100, target=b"notes/todo")
    await sync()
    await _checkpoint(file_system)
    await caller.unlink("notes/gone")
    await caller.link("notes/todo", "todo")
    files["todo"] = files["notes/todo"]
    photo = await caller.find("photo")
    overwritten = bytearray(files["photo"])
    for start in (1000, 300_000, 650_000):
        part = overwritten[start : start + 5000] = chance.randbytes(5000)
        await write(photo, start, part)
    files["photo"] = bytes(overwritten)
    files["tiny"] = b"x"
    await caller.create("tiny", data=b"x")
    await file_system.xattrs.set(photo, b"user.place", b"Oslo")
    await sync()
    return files


async def _checkpoint(file_system: FileSystem) -> None:
    store = file_system.store.behind
    assert isinstance(store, Store)
    await store.checkpoint()
