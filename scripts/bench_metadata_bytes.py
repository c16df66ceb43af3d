"""Counts the bytes written for creating many small files: by shardfs, and by RocksDB.

Role: the measurement behind a table in docs/performance.md. Files of 4 KiB are created in one
directory through the real file system layer on a real store in an image file, without a kernel.
Each leaves three records: its inode, its directory entry, and its shard. Then the same keys and
values, the file's data in place of where it lies, are put into RocksDB, one batch a file:
defaults, so leveled compaction with the log on; compaction is let settle. Both are asked how many
bytes they wrote.

Time is simulated, `--rate` files a second, so that as many files share a commit on a slow machine
as on a fast one. Background work runs as it always does; all of it is finished at the end.

Not here: how long it takes. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import trio
import trio.testing

from shardfs import limits
from shardfs.engine.block_device import BlockDevice, open_device
from shardfs.engine.images import create_image
from shardfs.engine.layout import Stream
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO, entry_key, inode_key, shard_key
from shardfs.fuse.records import Entry, Inode, encode_entry, encode_inode

FILE_BYTES = 4 * limits.KIB
FILE_MODE = 0o100644
RATE = 2500.0
STALL_S = 0.005
DEVICE_BYTES_PER_FILE = 8 * limits.KIB
DEVICE_BYTES_MIN = 512 * limits.MIB
SEED = 20
ROCKSDB_FIGURES = {
    "log": "rocksdb.wal.bytes",
    "flushed memtables": "rocksdb.flush.write.bytes",
    "compaction": "rocksdb.compact.write.bytes",
}


def names_of(files: int, order: str) -> list[bytes]:
    """The names to create, in the order of creation."""
    names = [b"file-%08d" % number for number in range(files)]
    if order == "random":
        random.Random(SEED).shuffle(names)
    return names


def contents(files: int) -> Iterator[bytes]:
    """The data of each file; nothing that could be compressed."""
    source = random.Random(SEED + 1)
    for _ in range(files):
        yield source.randbytes(FILE_BYTES)


class TalliedDevice:
    """A device that also counts what is written by what it is for."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._store: Store | None = None
        self.written: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def attribute_to(self, store: Store) -> None:
        """Count by this store's streams from now on."""
        self._store = store

    async def write(self, offset: int, buffers: Sequence[Any]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        what = "superblock"
        if self._store is not None:
            extents = self._store._extents
            extent = extents.all[offset // extents.extent_bytes]
            if extent.index >= limits.SUPERBLOCK_EXTENTS:
                what = Stream(extent.stream).name.lower()
        self.written[what] += length
        await self._device.write(offset, buffers)


class Progress:
    """How many files there are so far."""

    def __init__(self) -> None:
        self.files = 0


async def keep_time(progress: Progress, clock: trio.testing.MockClock) -> None:
    """While files are not created, because the store slows their writer, time passes as well."""
    seen = -1
    while True:
        await trio.to_thread.run_sync(time.sleep, STALL_S)
        if seen == progress.files:
            clock.jump(STALL_S)
        seen = progress.files


async def create_files(
    file_system: FileSystem,
    files: int,
    order: str,
    rate: float,
    clock: trio.testing.MockClock,
    progress: Progress,
) -> int:
    """Create and write every file; the inode number of the first."""
    first = 0
    for number, (name, data) in enumerate(
        zip(names_of(files, order), contents(files), strict=True)
    ):
        found = await file_system.namespace.create(ROOT_INO, name, FILE_MODE, 0, 0)
        await file_system.writeback.write(found.ino, 0, data)
        first = first or found.ino
        assert found.ino == first + number, "inode numbers are given out one after the other"
        progress.files += 1
        clock.jump(1 / rate)
        await trio.lowlevel.checkpoint()
        if sys.stderr.isatty() and number % 1000 == 0:
            print(f"\r{number} files", end="", file=sys.stderr, flush=True)
    return first


async def measure_shardfs(
    image: Path, files: int, order: str, rate: float, clock: trio.testing.MockClock
) -> dict[str, Any]:
    """Bytes written for the files, by what they are for, with the tree settled at the end."""
    size_bytes = max(DEVICE_BYTES_MIN, files * DEVICE_BYTES_PER_FILE)
    create_image(image, size_bytes)
    device = TalliedDevice(open_device(image))
    try:
        await format_device(device, plan(device.size_bytes, device.sector_bytes))  # type: ignore[arg-type]  # it stands in for one
        device.written.clear()
        async with Store.open(device) as store:  # type: ignore[arg-type]  # it stands in for one
            device.attribute_to(store)
            file_system = await FileSystem.open(store)
            async with trio.open_nursery() as nursery:
                file_system.start(nursery)
                progress = Progress()
                nursery.start_soon(keep_time, progress, clock)
                first = await create_files(file_system, files, order, rate, clock, progress)
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_time, progress, clock)
                await file_system.end()
                await store.checkpoint()
                while await store.compact():
                    pass
                nursery.cancel_scope.cancel()
            statistics = store.statistics()
            assert statistics.reason == "", statistics.reason
        return {
            "written": dict(device.written),
            "flushes": device.counts.flushes,
            "tree_bytes": statistics.tree_bytes,
            "runs": statistics.runs,
            "first_ino": first,
        }
    finally:
        device.close()
        image.unlink()  # noqa: ASYNC240 (nothing else is running)


def measure_rocksdb(folder: Path, files: int, order: str, first_ino: int) -> dict[str, Any]:
    """Bytes that RocksDB writes for the same records. To be run in a process of its own."""
    import rocksdict

    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.enable_statistics()
    database = rocksdict.Rdict(str(folder), options)
    now_ns = time.time_ns()
    for number, (name, data) in enumerate(
        zip(names_of(files, order), contents(files), strict=True)
    ):
        ino = first_ino + number
        times = (now_ns + number,) * 4
        inode = Inode(FILE_MODE, 1, 0, 0, 0, 0, FILE_BYTES, FILE_BYTES, *times, 0, b"")
        batch = rocksdict.WriteBatch(raw_mode=True)
        batch.put(inode_key(ino), encode_inode(inode))
        batch.put(entry_key(ROOT_INO, name), encode_entry(Entry(ino, FILE_MODE >> 12)))
        batch.put(shard_key(ino, 0), data)
        database.write(batch)
    database.flush(True)
    _await_settled(database)
    statistics = options.get_statistics()
    written = {what: _figure(statistics, name) for what, name in ROCKSDB_FIGURES.items()}
    levels = [
        int(database.property_value(f"rocksdb.num-files-at-level{level}") or 0)
        for level in range(7)
    ]
    database.close()
    calls = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {
        "written": written,
        "files_at_level": levels,
        "proc_io": {name: int(calls[name]) for name in ("wchar", "write_bytes")},
    }


def _figure(statistics: str, name: str) -> int:
    found = re.search(rf"^{re.escape(name)} COUNT : (\d+)$", statistics, re.MULTILINE)
    assert found, f"RocksDB has no figure {name}"
    return int(found[1])


def _await_settled(database: Any) -> None:
    """Wait until RocksDB has nothing to compact by its own choice."""
    quiet = 0
    while quiet < 5:
        time.sleep(0.2)
        busy = any(
            database.property_int_value(f"rocksdb.{name}")
            for name in (
                "compaction-pending",
                "num-running-compactions",
                "num-running-flushes",
                "mem-table-flush-pending",
            )
        )
        quiet = 0 if busy else quiet + 1


def measure(folder: Path, files: int, order: str, rate: float) -> dict[str, Any]:
    """Both, one after the other."""
    clock = trio.testing.MockClock()
    ours = trio.run(measure_shardfs, folder / "disk.img", files, order, rate, clock, clock=clock)
    database = folder / "rocksdb"
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            theirs = pool.apply(measure_rocksdb, (database, files, order, ours["first_ino"]))
    finally:
        shutil.rmtree(database, ignore_errors=True)
    ratio = sum(ours["written"].values()) / sum(theirs["written"].values())
    return {"order": order, "shardfs": ours, "rocksdb": theirs, "ratio": ratio}


def print_table(files: int, rate: float, results: list[dict[str, Any]]) -> None:
    """A Markdown table of bytes a file."""
    print(f"{files:,} files of {FILE_BYTES} bytes, {rate:,.0f} a second; bytes written a file\n")
    print("| names | system | in all | of that | shardfs / RocksDB |")
    print("|---|---|---|---|---|")
    for result in results:
        for name in ("shardfs", "rocksdb"):
            written = result[name]["written"]
            parts = ", ".join(f"{what} {count / files:,.0f}" for what, count in written.items())
            ratio = f"{result['ratio']:.3f}" if name == "shardfs" else ""
            total = sum(written.values()) / files
            print(f"| {result['order']} | {name} | {total:,.0f} | {parts} | {ratio} |")


def main() -> None:
    """Measure, print, clean up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=RATE, help="files a simulated second")
    parser.add_argument("--order", choices=("sorted", "random"), action="append")
    parser.add_argument("--folder", default=None, help="where image and database are made")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = [
            measure(Path(folder), options.files, order, options.rate)
            for order in options.order or ("sorted", "random")
        ]
    if options.json:
        print(json.dumps({"files": options.files, "rate": options.rate, "results": results}))
    else:
        print_table(options.files, options.rate, results)


if __name__ == "__main__":
    main()
