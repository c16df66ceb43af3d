#!/usr/bin/env python3
"""Measures what overwriting parts of files in place costs: device bytes for each byte of a user.

Fills a file system in memory to a share of what df calls free, half of it with one file and half
with files of 1 MiB, in chunks of 1 MiB; then overwrites parts of one length, anywhere, and counts.
Bytes are counted and the clock is simulated, so neither the machine nor its load matters.
"""

from __future__ import annotations

import argparse
import random

import trio
from bench_amplification import MemoryDevice
from trio.testing import MockClock

from shardfs import limits
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO

KIB, MIB = limits.KIB, limits.MIB
EXTENT_BYTES = 4 * MIB
BYTES_PER_S = 20 * MIB
SECONDS_TO_SETTLE = 60.0


async def fill(file_system: FileSystem, size: int, name: bytes) -> tuple[int, int]:
    """A file: its inode, and its size."""
    found = await file_system.namespace.create(ROOT_INO, name, 0o100644, 0, 0)
    for start in range(0, size, MIB):
        await file_system.writeback.write(found.ino, start, bytes(min(MIB, size - start)))
        await trio.sleep(MIB / BYTES_PER_S)
    return found.ino, size


async def overwrite(
    file_system: FileSystem, files: list[tuple[int, int]], length: int, volume: int, seed: int
) -> None:
    """So many bytes of the files, in parts of one length."""
    rng = random.Random(seed)
    sizes = [size for _, size in files]
    for _ in range(volume // length):
        ino, size = rng.choices(files, sizes)[0]
        start = rng.randrange(size // length) * length
        await file_system.writeback.write(ino, start, bytes(length))
        await trio.sleep(length / BYTES_PER_S)
    await file_system.sync()


async def measure(device_bytes: int, share: float, length: int, times: float) -> str:
    """One row of the table."""
    device = MemoryDevice(device_bytes)
    await format_device(device, plan(device_bytes, 4096, extent_bytes=EXTENT_BYTES))
    async with Store.open(device) as store, trio.open_nursery() as nursery:
        file_system = await FileSystem.open(store)
        file_system.start(nursery)
        wanted = int(share * store.space().free_bytes)
        files = [await fill(file_system, wanted // 2 // MIB * MIB, b"large")]
        for number in range(wanted // 2 // MIB):
            files.append(await fill(file_system, MIB, b"%d" % number))
        total = sum(size for _, size in files)
        await file_system.sync()
        free = store.space().free_bytes
        await overwrite(file_system, files, length, int(times * total), seed=1)
        before, by_stream = device.counts.write_bytes, store.statistics().stream_bytes
        volume = int(times * total / 2)
        await overwrite(file_system, files, length, volume, seed=2)
        sent = device.counts.write_bytes - before
        parts = {
            name: (count - by_stream[name]) / volume
            for name, count in store.statistics().stream_bytes.items()
        }
        await trio.sleep(SECONDS_TO_SETTLE)
        grown = (free - store.space().free_bytes) / total
        nursery.cancel_scope.cancel()
    await file_system.end()
    moved = parts["survivors"]
    tree = parts["runs"] + parts["meta"]
    new = parts["data"] + parts["hot"]
    return (
        f"| {length // KIB} KiB | {share:.0%} | {sent / volume:.2f} | {new:.2f} | {moved:.2f} "
        f"| {tree:.2f} | {grown:.2%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device-mib", type=int, default=256)
    parser.add_argument("--lengths-kib", type=int, nargs="*", default=[4, 16, 64, 256])
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.85, 0.95])
    parser.add_argument("--times", type=float, default=1.0, help="overwrite so often, then count")
    arguments = parser.parse_args()
    print("| parts | full | device bytes per byte | new and gathered | moved | tree and log | df |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for length in arguments.lengths_kib:
        for share in arguments.shares:
            clock = MockClock(autojump_threshold=0)
            cell = arguments.device_mib * MIB, share, length * KIB, arguments.times
            print(trio.run(measure, *cell, clock=clock), flush=True)


if __name__ == "__main__":
    main()
