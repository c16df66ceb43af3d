"""Names of inodes, and where files lie: what the requests behind `shardfs why` and `gc` answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shardfs import limits
from shardfs.engine.store import Store
from shardfs.errors import UsageError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.inspection import Inspection
from shardfs.fuse.keys import ROOT_INO, entry_key
from shardfs.fuse.paths import NAMES_MAX, find_paths
from tests.fuse.harness import Caller, mounted

MIB = limits.MIB


class StandIn:
    """A mount, as far as its conversations need one."""

    mountpoint = "/mnt"

    def __init__(self, file_system: FileSystem) -> None:
        self.file_system = file_system

    async def sync(self) -> None:
        await self.file_system.sync()

    def request_figures(self) -> dict[str, Any]:
        return {"requests": {}}


@asynccontextmanager
async def conversation() -> AsyncIterator[tuple[Inspection, Caller]]:
    """Somebody who answers about a fresh mount, and somebody who works in it."""
    async with mounted("engine") as file_system:
        store = file_system.store.behind
        assert isinstance(store, Store)
        inspection = Inspection(store, "/dev/simulated", mount=StandIn(file_system))
        yield inspection, Caller(file_system)
        await inspection.aclose()


async def ask(inspection: Inspection, request: str, **arguments: object) -> dict[str, Any]:
    return await inspection.answer({"request": request, **arguments})


async def files_in(inspection: Inspection, extent: int) -> list[dict[str, Any]]:
    await ask(inspection, "extent-files-begin", extent=extent)
    found: list[dict[str, Any]] = []
    while True:
        page = await ask(inspection, "extent-files-more")
        found += page["files"]
        if page["end"]:
            return found


async def test_paths() -> None:
    async with mounted() as file_system:
        caller = Caller(file_system)
        deep = "d"
        await caller.mkdir(deep)
        for number in range(30):
            deep += f"/{number}"
            await caller.mkdir(deep)
        file = await caller.create(f"{deep}/file")
        await caller.link(f"{deep}/file", "link")
        many = await caller.create("many")
        for number in range(2 * NAMES_MAX):
            await caller.link("many", f"many-{number}")
        nameless = await caller.create("nameless")
        file_system.handles.looked_up(nameless)
        await caller.unlink("nameless")
        folder = await caller.find(deep)
        paths = await find_paths(file_system.store, {file, many, nameless, folder, ROOT_INO, 999})
        assert sorted(paths.pop(file)) == [f"/{deep}/file", "/link"]
        assert len(paths.pop(many)) == NAMES_MAX
        assert paths == {folder: [f"/{deep}"], ROOT_INO: ["/"]}
        file_system.handles.forget(nameless, 1)


async def test_paths_pass_over_what_is_damaged() -> None:
    async with mounted() as file_system:
        caller = Caller(file_system)
        await caller.mkdir("a")
        file = await caller.create("a/file")
        store = file_system.store
        key = entry_key(ROOT_INO, b"broken")
        batch = store.batch()
        batch.put(key, b"no entry")
        store.apply(batch)
        assert await find_paths(store, {file}) == {file: ["/a/file"]}
        batch = store.batch()
        batch.delete(key)
        store.apply(batch)


async def test_files_of_an_extent_add_up_to_what_lives_in_it() -> None:
    async with conversation() as (inspection, caller):
        expected = {}
        for number in range(30):
            await caller.create(f"file-{number}", data=bytes([number]) * (70_000 + number))
            expected[f"/file-{number}"] = 70_000 + number
        await caller.file_system.sync()
        count = (await ask(inspection, "info"))["extent_count"]
        seen: dict[str, int] = {}
        for number in range(count):
            extent = await ask(inspection, "extent", extent=number)
            files = await files_in(inspection, number)
            if extent["stream"] in ("", "meta", "runs"):
                assert files == []
                continue
            assert sum(file["bytes"] for file in files) == extent["live_bytes"]
            for file in files:
                (path,) = file["paths"]
                seen[path] = seen.get(path, 0) + sum(length for _, length in file["ranges"])
        assert seen == expected


async def test_a_sparse_file_overwritten_here_and_there() -> None:
    async with conversation() as (inspection, caller):
        ino = await caller.create("file")
        write = caller.file_system.writeback.write
        for start in (0, 5 * MIB, 9 * MIB):
            await write(ino, start, bytes(200_000))
        await caller.file_system.sync()
        for start in range(0, 100_000, 10_000):
            await write(ino, start, b"x" * 1000)
        answer = await ask(inspection, "path", path="file")
        assert (answer["size"], answer["stored_bytes"]) == (9 * MIB + 200_000, 600_000)
        assert (answer["shards"], answer["overwritten_bytes"]) == (3, 10_000)
        assert answer["pieces"] > 3 + 10 and answer["kind"] == "file"
        assert sum(each["bytes"] for each in answer["extents"]) == answer["device_bytes"]
        assert answer["device_bytes"] < answer["stored_bytes"] + answer["overwritten_bytes"]
        assert answer == await ask(inspection, "path", ino=ino) | {"path": "file"}
        await caller.link("file", "twin")
        await caller.create("other", data=b"y" * 5000)
        root = await ask(inspection, "path", path="")
        assert (root["files"], root["stored_bytes"]) == (2, 605_000)
        space = await ask(inspection, "space")
        assert root["device_bytes"] == space["parts"]["live_bytes"]
        assert sum(space["parts"].values()) == space["device_bytes"]


async def test_a_removed_file_is_explained_until_it_is_freed() -> None:
    async with conversation() as (inspection, caller):
        ino = await caller.create("file", data=bytes(50_000))
        handles = caller.file_system.handles
        handles.looked_up(ino)
        await caller.unlink("file")
        answer = await ask(inspection, "path", ino=ino)
        assert (answer["removed"], answer["paths"], answer["names"]) == ("open", [], 0)
        number = answer["extents"][0]["extent"]
        (file,) = [each for each in await files_in(inspection, number) if each["ino"] == ino]
        assert file["removed"] == "open" and file["ranges"] == [[0, 50_000]]
        handles.forget(ino, 1)
        await caller.file_system.orphans.drained()
        with pytest.raises(UsageError, match=f"no inode {ino}"):
            await ask(inspection, "path", ino=ino)
        assert await files_in(inspection, number) == []


async def test_collecting_by_request() -> None:
    async with conversation() as (inspection, caller):
        for number in range(60):
            await caller.create(f"file-{number}", data=bytes([number]) * 300_000)
        await caller.file_system.sync()
        for number in range(60):
            if number % 3:
                await caller.unlink(f"file-{number}")
        await caller.file_system.sync()
        progress = await ask(inspection, "gc-begin")
        while progress["stage"] != "done":
            progress = await ask(inspection, "gc-step")
        assert progress["freed_extents"] > 0 and progress["stopped"] == ""
        plan = await ask(inspection, "gc-plan")
        assert plan["emptied_extents"] == plan["dead_extents"] == 0
        for number in range(0, 60, 3):
            assert await caller.read(f"file-{number}") == bytes([number]) * 300_000


@pytest.mark.parametrize(
    ("request_name", "arguments"),
    [
        ("extent", {}),
        ("extent", {"extent": -1}),
        ("extent", {"extent": 1 << 40}),
        ("extent-files-begin", {"extent": 1 << 40}),
        ("extent-files-more", {}),
        ("path", {}),
        ("path", {"path": "absent"}),
        ("path", {"ino": "7"}),
        ("path", {"ino": 99}),
        ("gc-step", {}),
    ],
)
async def test_senseless_requests(request_name: str, arguments: dict[str, object]) -> None:
    async with conversation() as (inspection, _):
        with pytest.raises(UsageError):
            await ask(inspection, request_name, **arguments)
        await ask(inspection, "shards-begin", path="")
        with pytest.raises(UsageError, match="no list"):
            await ask(inspection, "extent-files-more")
