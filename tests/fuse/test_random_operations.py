"""Random operations against the reference tree, and power cuts between any two batches.

Checked: each operation answers as the reference does; names, links and contents agree; after a
power cut at any batch the records fit together, and the reference allows what is found.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import hypothesis
from hypothesis import strategies as st

from shardfs.checking.conformance.file_trees import find_trees
from shardfs.checking.models.file_model import FileModel, Promise
from shardfs.checking.models.namespace_model import EXCHANGE, NOREPLACE
from shardfs.checking.models.store_model import ModelStore
from shardfs.errors import FileError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.namespace import Update
from tests.fuse.harness import SHARD_BYTES, Caller, opened_store, serving, verify

PATHS = [
    *("a", "b", "c"),
    *(f"{first}/{second}" for first in "ab" for second in "abc"),
    *("a/b/c", "a/a/a", "b/a/b"),
]
PATH = st.sampled_from(PATHS)
OFFSET = st.sampled_from([0, 1, 100, 5000, SHARD_BYTES - 3, SHARD_BYTES + 7])
OPERATION = st.one_of(
    st.tuples(st.just("create"), PATH),
    st.tuples(st.just("create"), PATH),
    st.tuples(st.just("mkdir"), PATH),
    st.tuples(st.just("mkdir"), PATH),
    st.tuples(st.just("link"), PATH, PATH),
    st.tuples(st.just("unlink"), PATH),
    st.tuples(st.just("rmdir"), PATH),
    st.tuples(st.just("rename"), PATH, PATH, st.sampled_from([0, 0, NOREPLACE, EXCHANGE])),
    st.tuples(st.just("write"), PATH, OFFSET, st.sampled_from([1, 10, 5000, 40_000])),
    st.tuples(st.just("truncate"), PATH, OFFSET),
    st.tuples(st.just("flush"), PATH),
    st.tuples(st.just("fsync"), PATH),
)
Operation = tuple[Any, ...]


class Run:
    """One sequence of operations on a file system and on the reference."""

    def __init__(self, file_system: FileSystem) -> None:
        self.caller = Caller(file_system)
        self.file_system = file_system
        self.model = FileModel()
        self.step = 0

    async def take(self, operation: Operation) -> None:
        """Do one operation on both; they answer alike."""
        self.step += 1
        name, *arguments = operation
        if name == "write":
            arguments[2] = bytes([1 + self.step % 255]) * arguments[2]
        expected, promise = self._expected(name, arguments)
        try:
            if name in ("write", "truncate", "flush", "fsync"):
                await getattr(self, f"_{name}")(*arguments)
            else:
                await self._change_names(name, arguments)
            found = 0
        except FileError as error:
            found = error.errno
        assert found == expected, (operation, found, expected)
        if promise is not None:
            self.model.keep(promise)

    async def check(self) -> None:
        """All names and contents are as in the reference."""
        [tree] = await find_trees(self.file_system, 1)
        assert self.model.difference(tree) == []

    def _expected(self, name: str, arguments: Sequence[Any]) -> tuple[int, Promise | None]:
        """The errno, and what is durable when the operation has returned."""
        model = self.model
        try:
            match name:
                case "fsync":
                    return 0, model.begin_sync(model.file(arguments[0]))
                case "flush":
                    model.store(model.file(arguments[0]))
                case "write" | "truncate":
                    getattr(model, name)(model.file(arguments[0]), *arguments[1:])
                case _:
                    getattr(model, name)(*arguments)
        except FileError as error:
            return error.errno, None
        return 0, None

    async def _change_names(self, name: str, arguments: Sequence[Any]) -> None:
        if name == "link":
            await self._resolve(arguments[0])
        for path in arguments[:2]:
            ino = await self._resolve(path.rpartition("/")[0])
            if not (await self.file_system.namespace.inode(ino)).is_directory:
                raise FileError(errno.ENOTDIR)
        await getattr(self.caller, name)(*arguments)

    async def _resolve(self, path: str) -> int:
        """The inode of a path, as the kernel would walk it."""
        ino = ROOT_INO
        for name in path.split("/") if path else []:
            if not (await self.file_system.namespace.inode(ino)).is_directory:
                raise FileError(errno.ENOTDIR)
            found = await self.file_system.namespace.lookup(ino, name.encode())
            if found is None:
                raise FileError(errno.ENOENT)
            ino = found.ino
        return ino

    async def _open(self, path: str) -> int:
        ino = await self._resolve(path)
        if (await self.file_system.namespace.inode(ino)).is_directory:
            raise FileError(errno.EISDIR)
        return ino

    async def _write(self, path: str, offset: int, data: bytes) -> None:
        await self.file_system.writeback.write(await self._open(path), offset, data)

    async def _truncate(self, path: str, length: int) -> None:
        ino = await self._open(path)
        update = Update(size=length)
        await self.file_system.namespace.set_attributes(ino, update, privileged=True)

    async def _flush(self, path: str) -> None:
        await self.file_system.writeback.flush(await self._open(path))

    async def _fsync(self, path: str) -> None:
        await self.file_system.writeback.fsync(await self._open(path))


@hypothesis.given(st.lists(OPERATION, max_size=40))
@hypothesis.settings(max_examples=150)
async def test_like_the_reference(operations: list[Operation]) -> None:
    async with opened_store("model") as store, serving(store, tasks=False) as file_system:
        run = Run(file_system)
        for operation in operations:
            await run.take(operation)
        await run.check()


@hypothesis.given(st.lists(OPERATION, max_size=25))
@hypothesis.settings(max_examples=60)
async def test_like_the_reference_on_the_engine(operations: list[Operation]) -> None:
    async with opened_store("engine") as store, serving(store) as file_system:
        run = Run(file_system)
        for operation in operations:
            await run.take(operation)
        await run.check()


@hypothesis.given(st.lists(OPERATION, max_size=25), st.data())
@hypothesis.settings(max_examples=150)
async def test_power_cuts(operations: list[Operation], data: st.DataObject) -> None:
    store = ModelStore()
    async with serving(store, tasks=False) as file_system:
        await file_system.sync()
        run = Run(file_system)
        for operation in operations:
            await run.take(operation)
        after = store.power_cut(data.draw(st.integers(0, len(store.unsynced))))
    assert await verify(after) == []
    async with serving(after) as file_system:
        [tree] = await find_trees(file_system, 1)
        run.model.after_crash(tree)
