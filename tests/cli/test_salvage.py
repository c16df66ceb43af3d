"""Salvage: a device whose superblock and metadata are random bytes gives its files back.

Role: a tree is written by the file system over an image file, the metadata is overwritten, and the
real command brings back names and contents.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import trio

from shardfs.cli import main
from shardfs.engine.block_device import open_device
from shardfs.engine.layout import Stream
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from tests.fuse.harness import DIRECTORY_MODE, FILE_MODE, MIB, Caller

METADATA = (Stream.RUNS, Stream.META)


def content_of(number: int) -> bytes:
    return random.Random(number).randbytes((0, 1, 4096, 5000, 70000)[number % 5] + number % 7)


async def fill(path: Path, count: int) -> dict[str, bytes]:
    """A tree of `count` files on an image; what is in them."""
    device = open_device(path, read_only=False)
    files: dict[str, bytes] = {}
    try:
        await format_device(device, plan(device.size_bytes, device.sector_bytes))
        async with Store.open(device, options=StoreOptions()) as store:
            file_system = await FileSystem.open(store)
            async with trio.open_nursery() as nursery:
                file_system.start(nursery)
                caller = Caller(file_system)
                for folder in range(20):
                    await caller.create(f"d{folder}", DIRECTORY_MODE)
                    await caller.create(f"d{folder}/sub", DIRECTORY_MODE)
                for number in range(count):
                    name = f"d{number % 20}/{'sub/' * (number % 2)}file {number}"
                    files[name] = content_of(number)
                    await caller.create(name, FILE_MODE, files[name])
                await change(caller, files)
                nursery.cancel_scope.cancel()
            await file_system.end()
    finally:
        device.close()
    return files


async def change(caller: Caller, files: dict[str, bytes]) -> None:
    """Renames, deletions, overwrites and truncations, as a tree in use has seen them."""
    names = list(files)
    await caller.rename("d3", "d1/moved")
    for name in names:
        if name.startswith("d3/"):
            files["d1/moved" + name.removeprefix("d3")] = files.pop(name)
    for name in [each for each in files if each.startswith("d5/")]:
        await caller.unlink(name)
        del files[name]
    for number, name in enumerate([each for each in files if each.startswith("d7/")]):
        file_system = caller.file_system
        if number % 2:
            await file_system.writeback.write(await caller.find(name), 0, b"over" * 100)
            files[name] = b"over" * 100 + files[name][400:]
        else:
            ino = await caller.find(name)
            await file_system.writeback.flush(ino)
            await file_system.writeback.truncate(ino, 3, lambda inode: inode)
            files[name] = files[name][:3].ljust(3, b"\0")


async def destroy_metadata(path: Path, seed: int) -> int:
    """Overwrite the superblock and all extents of metadata; how many bytes."""
    device = open_device(path, read_only=True)
    async with Store.open(device, options=StoreOptions(read_only=True)) as store:
        size = store.identity.extent_bytes
        doomed = [extent.index for extent in store._extents.all if extent.stream in METADATA]
    device.close()
    randomness = random.Random(seed)
    with path.open("r+b") as image:
        for index in (0, 1, *doomed):
            image.seek(index * size)
            image.write(randomness.randbytes(size))
    return size * (2 + len(doomed))


def found_below(root: Path) -> dict[str, bytes]:
    return {
        os.path.relpath(os.path.join(folder, name), root): Path(folder, name).read_bytes()
        for folder, _, names in os.walk(root)
        for name in names
    }


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
async def test_every_file_comes_back_when_all_metadata_is_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    image, out = tmp_path / "disk.img", tmp_path / "out"
    with image.open("wb") as file:
        file.truncate(max(64, count // 20) * MIB)
    files = await fill(image, count)
    assert await destroy_metadata(image, count) > 0
    status = await trio.to_thread.run_sync(main.run, ["salvage", str(image), str(out), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["damaged"], report["unnamed"]) == (0, [], 0)
    assert found_below(out) == files
    assert (report["files"], report["inexact"]) == (len(files), 0)
    assert (out / "d1/moved/sub").is_dir() and not (out / "d3").exists()
