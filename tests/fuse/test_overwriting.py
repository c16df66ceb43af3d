"""Parts of files are overwritten in place on a device that is nearly full.

The sum of the files' sizes stays, so nobody may be told that the device is full, and df has to
stay where it is, however often all of it is overwritten.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio

from shardfs import limits
from shardfs.engine.fsck import check_store
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from tests.fuse.harness import MIB, Caller, opened_store, serving

KIB = limits.KIB
BYTES_PER_S = 30 * MIB
GROWTH_SHARE_MAX = 1 / 32
"""Of what the files hold: heads of pieces, and the tree's entries for them."""

Contents = dict[int, bytearray]


async def fill(file_system: FileSystem, sizes: Sequence[int]) -> Contents:
    """Files of these sizes, by inode."""
    caller = Caller(file_system)
    files: Contents = {}
    rng = random.Random(len(sizes))
    for number, size in enumerate(sizes):
        data = rng.randbytes(size)
        files[await caller.create(f"{number}", data=data)] = bytearray(data)
        await trio.sleep(size / BYTES_PER_S)
    return files


async def overwrite(
    file_system: FileSystem, files: Contents, lengths: tuple[int, int], times: float
) -> None:
    """Parts of the files, anywhere, until so many times their bytes have been written."""
    rng = random.Random(6)
    numbers, sizes = list(files), [len(content) for content in files.values()]
    left = int(times * sum(sizes))
    while left > 0:
        ino = rng.choices(numbers, sizes)[0]
        length = min(rng.randint(*lengths), len(files[ino]))
        start = rng.randrange(len(files[ino]) - length + 1)
        data = rng.randbytes(length)
        await file_system.writeback.write(ino, start, data)
        files[ino][start : start + length] = data
        await trio.sleep(length / BYTES_PER_S)
        left -= length


@pytest.mark.parametrize(
    ("share", "lengths", "times"),
    [
        (0.85, (4 * KIB, 256 * KIB), 2.0),
        (0.95, (4 * KIB, 256 * KIB), 1.5),
        (0.95, (4 * KIB, 4 * KIB), 0.25),
        (0.99, (1, 64 * KIB), 0.5),
    ],
)
async def test_overwriting_in_place_is_never_refused(
    share: float, lengths: tuple[int, int], times: float
) -> None:
    async with opened_store("engine") as store:
        assert isinstance(store, Store)
        async with serving(store) as file_system:
            wanted = int(share * store.space().free_bytes)
            sizes = [wanted // 2, *[MIB] * (wanted // 2 // MIB - 1)]
            files = await fill(file_system, sizes)
            await file_system.sync()
            before = store.space().free_bytes
            await overwrite(file_system, files, lengths, times)
            await file_system.sync()
            await trio.sleep(60.0)
            assert before - store.space().free_bytes <= GROWTH_SHARE_MAX * sum(sizes)
            for ino, content in files.items():
                assert await file_system.writeback.read(ino, 0, len(content)) == content
        assert (await check_store(store, data=True)).is_clean
