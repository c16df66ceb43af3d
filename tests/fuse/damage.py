"""A small store with files, every structure in it by name, and ways to damage it.

Role: shared by the tests of repair, salvage and scrub. The store is made once; each test damages a
copy of its image.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.framing import decode_head, head_bytes
from shardfs.engine.layout import FRAME_HEADER, ExtentState, Stream
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Locator, Shard, locators
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, ShardfsError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import NAME_PAGE_PREFIX, ROOT_INO, decode_entry_key, entries_start
from shardfs.limits import KIB, MIB
from tests.fuse.harness import DIRECTORY_MODE, FILE_MODE, Caller

EXTENT_BYTES = 128 * KIB
EXTENT_COUNT = 44
SIZE_BYTES = EXTENT_COUNT * EXTENT_BYTES
NODES_MAX = 1000
PATH_LENGTH_MAX = 200
READ_BYTES_MAX = MIB
"""Bounds of `read_tree`."""
LOOKING = StoreOptions(read_only=True, background=False)
Tree = dict[str, bytes | None]
"""Content by path; None for a directory."""


@dataclass(frozen=True)
class Sample:
    """An image, what is in it, and where its structures lie: (first byte, length) of each."""

    image: bytes
    tree: Tree
    places: dict[str, list[tuple[int, int]]]
    extents: dict[str, list[int]]


def content_of(number: int) -> bytes:
    sizes = (10, 300, 4096, 5000, 40000, 70001, 120000)
    return random.Random(number).randbytes(sizes[number % len(sizes)])


async def make_sample(count: int = 24) -> Sample:
    """A store of a few directories and some files with two runs, a delta log, overwritten data."""
    device = SimulatedDevice(SIZE_BYTES)
    await format_device(device, plan(SIZE_BYTES, 512, extent_bytes=EXTENT_BYTES))
    tree: Tree = {}
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        file_system = await FileSystem.open(store)
        caller = Caller(file_system)
        for folder in ("a", "a/b", "c"):
            await caller.create(folder, DIRECTORY_MODE)
            tree[folder] = None
        for number in range(count * 2 // 3):
            await create(caller, tree, f"{('a', 'a/b', 'c')[number % 3]}/file{number}", number)
        await file_system.writeback.flush_all()
        await file_system.name_pages.write()
        await store.checkpoint()
        for number in range(count * 2 // 3, count):
            await create(caller, tree, f"{('a', 'a/b', 'c')[number % 3]}/file{number}", number)
        await overwrite(caller, tree)
        await file_system.writeback.flush_all()
        await store.checkpoint()
        await create(caller, tree, "late", 61)
        await create(caller, tree, "a/late", 62)
        await file_system.xattrs.set(await caller.find("late"), b"user.colour", b"green")
        await file_system.end()
        places, extents = await places_of(store)
    return Sample(bytes(device.image()), tree, places, extents)


async def create(caller: Caller, tree: Tree, path: str, number: int) -> None:
    data = content_of(number)
    tree[path] = data
    await caller.create(path, FILE_MODE, data)


async def overwrite(caller: Caller, tree: Tree) -> None:
    for number in (4, 5, 13):
        path = f"{('a', 'a/b', 'c')[number % 3]}/file{number}"
        data = tree[path]
        assert data is not None
        await caller.file_system.writeback.write(await caller.find(path), 1000, b"new" * 2000)
        tree[path] = data[:1000] + b"new" * 2000 + data[7000:]
    await caller.unlink("c/file2")
    del tree["c/file2"]
    await caller.rename("a/file3", "c/renamed")
    tree["c/renamed"] = tree.pop("a/file3")


async def places_of(store: Store) -> tuple[dict[str, list[tuple[int, int]]], dict[str, list[int]]]:
    """Where each kind of structure lies."""
    found: dict[str, list[tuple[int, int]]] = {"superblock": [(0, 4096), (EXTENT_BYTES, 4096)]}

    def add(kind: str, locator: Locator) -> None:
        start = store.identity.extent_offset(locator.extent) + locator.offset
        head = head_bytes(locator.key_bytes, locator.length)
        found.setdefault(kind, []).append((start, head + locator.length))

    manifest = store._committer.root.manifest
    assert manifest is not None
    add("manifest", manifest)
    for run in store._tree.runs:
        for segment in run.segments:
            add("run index", segment.meta.index_locator)
            for block in segment.index.blocks:
                add("run block", block)
    async for key, value in store.scan(b"\0", b"\xff" * 20):
        if isinstance(value, Shard):
            for locator in locators(value.pieces).values():
                add("name page" if key[:1] == NAME_PAGE_PREFIX else "data", locator)
    extents: dict[str, list[int]] = {}
    for extent in store._extents.all:
        if extent.state is not ExtentState.FREE and extent.stream is not Stream.NONE:
            extents.setdefault(extent.stream.name, []).append(extent.index)
            if extent.stream is Stream.META and extent.write_pointer:
                found.setdefault("delta", []).extend(await deltas(store, extent.index))
    return found, extents


async def deltas(store: Store, index: int) -> list[tuple[int, int]]:
    found, at = [], 0
    extent = store._extents.all[index]
    while at < extent.write_pointer:
        data = await store._extents.read(index, at, min(70 * KIB, EXTENT_BYTES - at))
        try:
            frame = decode_head(data)
        except CorruptionError:
            at += 4096 - at % 4096
            continue
        found.append((store.identity.extent_offset(index) + at, frame.total_bytes))
        at += frame.total_bytes
    return found


# --- damage -------------------------------------------------------------------------------------


Damage = Callable[[bytearray, int, int, random.Random], None]


def flip_bit(image: bytearray, start: int, length: int, source: random.Random) -> None:
    at = start + source.randrange(length)
    image[at] ^= 1 << source.randrange(8)


def zero_sector(image: bytearray, start: int, length: int, source: random.Random) -> None:
    at = (start + source.randrange(length)) // 512 * 512
    image[at : at + 512] = bytes(512)


def swap_sectors(image: bytearray, start: int, length: int, source: random.Random) -> None:
    at = (start + source.randrange(length)) // 512 * 512
    other = source.randrange(len(image) // 512) * 512
    image[at : at + 512], image[other : other + 512] = (
        image[other : other + 512],
        image[at : at + 512],
    )


def lose_extent(image: bytearray, start: int, length: int, source: random.Random) -> None:
    at = start // EXTENT_BYTES * EXTENT_BYTES
    fill = source.choice((bytes(EXTENT_BYTES), source.randbytes(EXTENT_BYTES)))
    image[at : at + EXTENT_BYTES] = fill


def cut_off(image: bytearray, start: int, length: int, source: random.Random) -> None:
    keep = source.randrange(EXTENT_BYTES * 26, len(image)) // 4096 * 4096
    del image[keep:]


DAMAGES: dict[str, Damage] = {
    "bit": flip_bit,
    "zeroed": zero_sector,
    "swapped": swap_sectors,
    "lost": lose_extent,
    "cut": cut_off,
}


def fields_of(kind: str, start: int, length: int) -> Iterator[tuple[str, int, int]]:
    """(name, first byte, length) of the parts of a frame: each field of its header, the rest."""
    for offset, size, name, _ in FRAME_HEADER.describe():
        yield name, start + offset, size
    yield f"{kind} behind the header", start + FRAME_HEADER.size, max(1, length - FRAME_HEADER.size)


# --- looking ------------------------------------------------------------------------------------


async def read_tree(store: Store) -> tuple[Tree, set[str]]:
    """What can be read of a file system (for a symbolic link, its target), and the paths of what
    cannot. Ends on any tree: what is found is bounded, and what is read of a file."""
    tree: Tree = {}
    unreadable: set[str] = set()
    file_system = await FileSystem.open(store)
    waiting = [("", ROOT_INO)]
    while waiting and len(tree) < NODES_MAX:
        path, ino = waiting.pop()
        names: list[bytes] = []
        try:
            async for key, _ in store.scan(entries_start(ino), entries_start(ino + 1)):
                names.append(decode_entry_key(key)[2])
        except ShardfsError:
            unreadable.add(path)
        for name in names[:NODES_MAX]:
            below = f"{path}/{name.decode('utf-8', 'backslashreplace')}".lstrip("/")
            try:
                found = await file_system.namespace.lookup(ino, name)
                if found is None:
                    continue
                inode = found.inode
                if inode.is_directory:
                    tree[below] = None
                    if len(below) < PATH_LENGTH_MAX:
                        waiting.append((below, found.ino))
                elif inode.target:
                    tree[below] = inode.target
                else:
                    size = min(inode.size, READ_BYTES_MAX)
                    tree[below] = bytes(await file_system.writeback.read(found.ino, 0, size))
            except ShardfsError:
                unreadable.add(below)
            await trio.lowlevel.checkpoint()
    return tree, unreadable
