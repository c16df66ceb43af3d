"""A very small store in memory, and what there is in it to be damaged: every frame, every field.

Role: the ground of the damage campaign (damage_campaign.py). The names of fields are those of the
format's tables: they come from taking the frames apart (engine/dissection.py).

Not here: how a place is damaged, and what has to come of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from shardfs.checking.image_device import ImageDevice
from shardfs.engine.dissection import dissect_frame
from shardfs.engine.layout import Kind
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.salvage import scan_device
from shardfs.engine.store import Store
from shardfs.fuse import access_lists
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.record_dissection import dissection_of
from shardfs.fuse.records import AccessEntry, encode_access_list
from shardfs.limits import KIB
from tests.fuse.damage import Tree, content_of, places_of
from tests.fuse.harness import DIRECTORY_MODE, FILE_MODE, Caller

EXTENT_BYTES = 64 * KIB
EXTENT_COUNT = 40
LINK_MODE = 0o120777
SIZE_BYTES = EXTENT_COUNT * EXTENT_BYTES
LINKS = dict.fromkeys(("a/file2", "second"), ("a/file2", "second"))
"""The names of a file that has several; fsck says one of them."""
FORMER_NAMES = {"a/b/renamed": "a/file0"}
"""What is left of a file's name when two damages have hit the present one and what repeats it."""
_NUMBER = re.compile(r"\b\d+ ?|(?<=\w) \d+\b")


class FramePlace(NamedTuple):
    """A frame that counts: bytes [start, end) of the image, of which those from `used_end` on only
    fill up to where the next frame may start."""

    structure: str
    start: int
    end: int
    used_end: int


class Field(NamedTuple):
    """A field of one frame: `length` bytes at byte `start` of the image."""

    frame: FramePlace
    start: int
    length: int


@dataclass(frozen=True)
class Ground:
    """An undamaged image.

    tree: what is in it.
    older: what a file held before the last entries of the log: a reader may still get that when
        one of them is damaged and so the store says that its log is.
    frames: every frame that counts, by structure.
    fields: every field of these frames, by "structure: table: field".
    """

    image: bytes
    tree: Tree
    older: Tree
    frames: dict[str, list[FramePlace]]
    fields: dict[str, list[Field]]


async def make_ground() -> Ground:
    """A store with every structure and record: two runs, a log, links, attributes, holes."""
    device = ImageDevice(bytearray(SIZE_BYTES))
    await format_device(device, plan(SIZE_BYTES, 512, extent_bytes=EXTENT_BYTES))
    tree: Tree = {}
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        file_system = await FileSystem.open(store)
        caller = Caller(file_system)
        for folder in ("a", "a/b"):
            await caller.create(folder, DIRECTORY_MODE)
            tree[folder] = None
        for number in range(5):
            await _create(caller, tree, f"{('a', 'a/b')[number % 2]}/file{number}", number)
        await _decorate(caller, tree)
        await file_system.writeback.flush_all()
        await file_system.name_pages.write()
        await store.checkpoint()
        await _change(caller, tree)
        await file_system.writeback.flush_all()
        await store.checkpoint()
        older = {"a/b/renamed": tree["a/b/renamed"]}
        await _create(caller, tree, "late", 8)
        await file_system.writeback.write(await caller.find("a/b/renamed"), 6000, b"new" * 400)
        tree["a/b/renamed"] = (tree["a/b/renamed"] or b"").ljust(6000, b"\0") + b"new" * 400
        await file_system.xattrs.set(await caller.find("late"), b"user.colour", b"green")
        await file_system.end()
        places, _ = await places_of(store)
    image = bytes(device.image)
    frames = await _frames_of(image, places)
    return Ground(image, tree, older, frames, _fields_of(image, frames))


async def _create(caller: Caller, tree: Tree, path: str, number: int) -> None:
    data = content_of(number)
    tree[path] = data
    await caller.create(path, FILE_MODE, data)


async def _decorate(caller: Caller, tree: Tree) -> None:
    """A symbolic link, a hard link, attributes, an access list."""
    namespace, xattrs = caller.file_system.namespace, caller.file_system.xattrs
    await namespace.create(*await caller.place("link"), LINK_MODE, 0, 0, target=b"a/file0")
    tree["link"] = b"a/file0"
    await caller.link("a/file2", "second")
    tree["second"] = tree["a/file2"]
    await xattrs.set(await caller.find("a/file2"), b"user.shape", b"round" * 9)
    user, group, mask, other = (2, 4, 16, 32)
    nobody = 0xFFFFFFFF
    tags = ((1, 6, nobody), (user, 4, 1000), (group, 4, nobody), (mask, 6, nobody))
    entries = [AccessEntry(*each) for each in (*tags, (other, 4, nobody))]
    xattrs.access_lists = True
    target = await caller.find("a/file2")
    await xattrs.set_access_list(target, access_lists.ACCESS, encode_access_list(entries))


async def _change(caller: Caller, tree: Tree) -> None:
    """Overwritten bytes, a name less, a name changed, more files."""
    for path in ("a/b/file3", "a/file4"):
        data = tree[path]
        assert data is not None
        await caller.file_system.writeback.write(await caller.find(path), 1000, b"new" * 700)
        tree[path] = data[:1000] + b"new" * 700 + data[3100:]
    await caller.unlink("a/b/file1")
    del tree["a/b/file1"]
    await caller.rename("a/file0", "a/b/renamed")
    tree["a/b/renamed"] = tree.pop("a/file0")
    for number in (5, 7):
        await _create(caller, tree, f"a/file{number}", number)


async def _frames_of(
    image: bytes, places: dict[str, list[tuple[int, int]]]
) -> dict[str, list[FramePlace]]:
    """The frames that the tree refers to, and every record of the superblock and the log."""
    referenced = {start: kind for kind, each in places.items() for start, _ in each}
    found: dict[str, list[FramePlace]] = {}
    async for each in scan_device(ImageDevice(bytearray(image))):
        kind = referenced.get(each.at)
        if each.frame.kind is Kind.SUPERBLOCK:
            kind = "superblock"
        elif each.frame.kind is Kind.DELTA:
            kind = "delta"
        if kind is not None:
            used_end = each.at + each.frame.payload_offset + each.frame.payload_bytes
            place = FramePlace(kind, each.at, each.at + each.frame.total_bytes, used_end)
            found.setdefault(kind, []).append(place)
    return found


def _fields_of(image: bytes, frames: dict[str, list[FramePlace]]) -> dict[str, list[Field]]:
    found: dict[str, list[Field]] = {}
    for structure, places in frames.items():
        for place in places:
            dissection = dissection_of(image[place.start : place.end])
            dissect_frame(dissection)
            assert not dissection.troubles, (place, dissection.troubles)
            for each in dissection.fields:
                table = _NUMBER.sub("", each.structure)
                name = f"{structure}: {table}: {_NUMBER.sub('', each.name)}"
                found.setdefault(name, []).append(
                    Field(place, place.start + each.offset, each.length)
                )
    return found
