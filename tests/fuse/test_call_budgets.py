"""Requests keep to their budget of calls: the machine's speed and load change nothing."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pyfuse3
import pytest
import trio

from shardfs import limits
from shardfs.engine.block_device import open_device
from shardfs.engine.images import create_image
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.mount_options import MountOptions
from shardfs.fuse.operations import Operations
from tests.fuse.call_budgets import CALLS

FILES = 200
DATA = b"x" * 4096
CONTEXT = pyfuse3.RequestContext()


class Calls:
    """Calls of Python functions, an average for each of FILES requests."""

    def __init__(self) -> None:
        self.measured: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        count = 0

        def note(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            count += event == "call"

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(before)
            self.measured[name] = count / FILES


@pytest.mark.real_clock
async def test_requests_keep_to_their_budget_of_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    create_image(path, 256 * limits.MIB)
    device = open_device(path)
    await format_device(device, plan(device.size_bytes, 512))
    calls = Calls()
    try:
        async with Store.open(device) as store:
            file_system = await FileSystem.open(store)
            operations = Operations(file_system, MountOptions())
            async with trio.open_nursery() as nursery:
                file_system.start(nursery)
                await work(operations, file_system, calls, monkeypatch)
                nursery.cancel_scope.cancel()
            await file_system.end()
    finally:
        device.close()
    assert calls.measured.keys() == CALLS.keys()
    over = {name: n for name, n in calls.measured.items() if n > CALLS[name]}
    assert not over, f"more calls than {CALLS}"


async def work(
    operations: Operations,
    file_system: FileSystem,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every kind of request, FILES times."""
    names = [b"file-%d" % number for number in range(FILES)]
    with calls.of("lookup of a name that is not there"):
        for name in names:
            await operations.lookup(ROOT_INO, name, CONTEXT)
    inos, handles = [], []
    with calls.of("create"):
        for name in names:
            info, told = await operations.create(ROOT_INO, name, 0o100644, os.O_WRONLY, CONTEXT)
            inos.append(told.st_ino)
            handles.append(info.fh)
    with calls.of("getattr"):
        for ino in inos:
            await operations.getattr(ino, CONTEXT)
    with calls.of("write of 4 KiB"):
        for handle in handles:
            await operations.write(handle, 0, DATA)
    with calls.of("giving a file of 4 KiB to the engine"):
        for ino in inos:
            await file_system.writeback.flush(ino)
    with calls.of("lookup"):
        for name in names:
            await operations.lookup(ROOT_INO, name, CONTEXT)
    for handle in handles:
        await operations.release(handle)
    with calls.of("open"):
        handles = [(await operations.open(ino, os.O_RDONLY, CONTEXT)).fh for ino in inos]
    for handle in handles:
        await operations.release(handle)
    await list_names(operations, calls, monkeypatch)
    await move_and_remove(operations, file_system, calls, names, inos)
    await make_durable(operations, calls)
    await read_at_random(operations, calls)


async def list_names(operations: Operations, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """READDIR without the kernel: its buffer takes everything."""
    told: list[bytes] = []

    def take(token: object, name: bytes, attributes: object, position: int) -> bool:
        told.append(name)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", take)
    handle = await operations.opendir(ROOT_INO, CONTEXT)
    with calls.of("entry of a directory"):
        await operations.readdir(handle, 0, None)  # type: ignore[arg-type]  # not asked for
    await operations.releasedir(handle)
    assert len(told) == FILES + 2


async def move_and_remove(
    operations: Operations,
    file_system: FileSystem,
    calls: Calls,
    names: list[bytes],
    inos: list[int],
) -> None:
    """Names change, then go, then the files."""
    for name in names:
        await operations.lookup(ROOT_INO, name + b"-", CONTEXT)
    with calls.of("rename"):
        for name in names:
            await operations.rename(ROOT_INO, name, ROOT_INO, name + b"-", 0, CONTEXT)
    with calls.of("unlink"):
        for name in names:
            await operations.unlink(ROOT_INO, name + b"-", CONTEXT)
    await operations.forget([(ino, FILES) for ino in inos])
    with calls.of("freeing a removed file"):
        await file_system.orphans.drained()


async def make_durable(operations: Operations, calls: Calls) -> None:
    """fsync of new files."""
    handles = []
    for number in range(FILES):
        name = b"durable-%d" % number
        info, _ = await operations.create(ROOT_INO, name, 0o100644, os.O_WRONLY, CONTEXT)
        await operations.write(info.fh, 0, DATA)
        handles.append(info.fh)
    with calls.of("fsync of a file of 4 KiB"):
        for handle in handles:
            await operations.fsync(handle, False)


async def read_at_random(operations: Operations, calls: Calls) -> None:
    """Blocks of a file that was overwritten at random."""
    info, _ = await operations.create(ROOT_INO, b"large", 0o100644, os.O_RDWR, CONTEXT)
    await operations.write(info.fh, 0, bytes(limits.MIB))
    choose = random.Random(1)
    places = [choose.randrange(limits.MIB // limits.BLOCK_BYTES) for _ in range(FILES)]
    for place in places[::8]:
        await operations.write(info.fh, place * limits.BLOCK_BYTES, DATA)
    await operations.fsync(info.fh, False)
    with calls.of("read of 4 KiB of a file in pieces"):
        for place in places:
            await operations.read(info.fh, place * limits.BLOCK_BYTES, limits.BLOCK_BYTES)
    await operations.release(info.fh)
