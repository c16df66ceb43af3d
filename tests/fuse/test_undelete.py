"""Undelete: what was deleted is listed with its name and comes back whole until it is reclaimed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from shardfs.cli import main
from shardfs.engine.block_device import open_device
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from tests.fuse.damage import content_of
from tests.fuse.harness import DIRECTORY_MODE, FILE_MODE, MIB, Caller

MANUAL = StoreOptions(background=False)


async def delete_some(image: Path) -> None:
    """Three files, of which one is overwritten in part; two are deleted, one with its directory."""
    device = open_device(image, read_only=False)
    await format_device(device, plan(device.size_bytes, device.sector_bytes))
    async with Store.open(device, options=MANUAL) as store:
        file_system = await FileSystem.open(store)
        caller = Caller(file_system)
        await caller.create("gone", DIRECTORY_MODE)
        for number, path in enumerate(("kept", "deleted", "gone/deep"), 4):
            await caller.create(path, FILE_MODE, content_of(number))
        await file_system.end()
    async with Store.open(device, options=MANUAL) as store:
        file_system = await FileSystem.open(store)
        caller = Caller(file_system)
        await file_system.writeback.write(await caller.find("deleted"), 100, b"new" * 50)
        await file_system.writeback.flush_all()
        for path in ("deleted", "gone/deep"):
            await caller.unlink(path)
        await caller.rmdir("gone")
        await file_system.end()
    device.close()


async def test_deleted_files_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = tmp_path / "disk.img", tmp_path / "back"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    await delete_some(image)
    original = image.read_bytes()

    async def run(*arguments: str) -> int:
        return await trio.to_thread.run_sync(main.run, ["undelete", str(image), *arguments])

    assert await run("--list", "--json") == 0
    listed = {each["path"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(listed) == {"/deleted", "…/deep"}
    assert all(each["is_whole"] for each in listed.values())
    assert await run("deleted", str(out)) == 0
    expected = bytearray(content_of(5))
    expected[100:250] = b"new" * 50
    assert out.read_bytes() == expected
    out.unlink()
    assert await run(f"inode:{listed['…/deep']['ino']}", str(out)) == 0
    assert out.read_bytes() == content_of(6)
    assert await run("kept", str(tmp_path / "other")) == 2
    assert image.read_bytes() == original, "nothing was written to the device"
