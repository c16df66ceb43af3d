"""One store, opened in a process of its own: to make it, to put files into it, to time its opening.

Role: the parts of scripts/bench --scale that need no mount. Prints one line of JSON.

    make DEVICE                 a fresh shardfs
    grow DEVICE FIRST LAST      files of 4 KiB numbered from FIRST to before LAST, through the file
                                layer, with all background work going on, and closed in order
    open DEVICE                 open it and close it again; seconds until it could serve

Not here: calls through a mount (bench_scale.py).
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import trio

from shardfs import limits
from shardfs.engine.block_device import BlockDevice, open_device
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO

FILES_PER_DIRECTORY = 1000
FILE_BYTES = 4 * limits.KIB
FILE_MODE, DIRECTORY_MODE = 0o100644, 0o040755


def directory_name(number: int) -> str:
    """The directory that a file is in."""
    return f"d{number // FILES_PER_DIRECTORY:04d}"


def file_name(number: int) -> str:
    """A file's name in its directory."""
    return f"file-{number:07d}"


async def make(device: BlockDevice) -> dict[str, Any]:
    """An empty store."""
    await format_device(device, plan(device.size_bytes, device.sector_bytes))
    return {}


async def grow(device: BlockDevice, first: int, last: int) -> dict[str, Any]:
    """Create the files; how long it took."""
    started = time.perf_counter()
    source = random.Random(first)
    async with Store.open(device) as store:
        file_system = await FileSystem.open(store)
        async with trio.open_nursery() as nursery:
            file_system.start(nursery)
            folder = ROOT_INO
            for number in range(first, last):
                if number % FILES_PER_DIRECTORY == 0:
                    name = directory_name(number).encode()
                    made = await file_system.namespace.create(ROOT_INO, name, DIRECTORY_MODE, 0, 0)
                    folder = made.ino
                name = file_name(number).encode()
                found = await file_system.namespace.create(folder, name, FILE_MODE, 0, 0)
                await file_system.writeback.write(found.ino, 0, source.randbytes(FILE_BYTES))
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await file_system.end()
        statistics = store.statistics()
        assert statistics.reason == "", statistics.reason
    return {"seconds": time.perf_counter() - started}


async def open_once(device: BlockDevice, begun: float) -> dict[str, Any]:
    """Open as a mount does; seconds until it could serve, since the device was opened."""
    async with Store.open(device) as store:
        file_system = await FileSystem.open(store)
        seconds = time.perf_counter() - begun
        notes = list(store.notes)
        await file_system.end()
    return {"seconds": seconds, "notes": notes}


def main() -> None:
    """Do one of the three."""
    what, path, *numbers = sys.argv[1:]
    begun = time.perf_counter()
    device = open_device(path)
    try:
        if what == "make":
            found = trio.run(make, device)
        elif what == "grow":
            found = trio.run(grow, device, int(numbers[0]), int(numbers[1]))
        else:
            found = trio.run(open_once, device, begun)
    finally:
        device.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
