"""fuse/namespace.py and rename.py: what POSIX says of names, on the model and on the engine."""

from __future__ import annotations

import errno
import stat

import pytest

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.errors import FileError, NoSpaceError, ReadOnlyError
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.namespace import Update
from shardfs.fuse.rename import EXCHANGE, NOREPLACE
from tests.fuse.harness import DIRECTORY_MODE, FILE_MODE, Caller, mounted, serving

pytestmark = pytest.mark.parametrize("kind", ["model", "engine"])


async def test_create_and_look_up(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        root = await file_system.namespace.inode(ROOT_INO)
        ino = await caller.create("a")
        assert await caller.find("a") == ino
        assert await file_system.namespace.lookup(ROOT_INO, b"b") is None
        assert await caller.errno("create", "a") == errno.EEXIST
        assert await caller.errno("create", "x" * 256) == errno.ENAMETOOLONG
        assert await caller.errno("create", "a/b") == errno.ENOTDIR
        changed = await file_system.namespace.inode(ROOT_INO)
        assert changed.size == 1 and changed.nlink == 2
        assert changed.mtime_ns == changed.ctime_ns > root.mtime_ns
        inode = await file_system.namespace.inode(ino)
        assert inode.nlink == 1 and inode.mode == FILE_MODE
        assert inode.atime_ns == inode.mtime_ns == inode.ctime_ns == inode.btime_ns > 0


async def test_directories_count_their_subdirectories(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        await caller.mkdir("d")
        await caller.mkdir("d/e")
        await caller.create("d/f")
        directory = await file_system.namespace.inode(await caller.find("d"))
        assert (directory.nlink, directory.size) == (3, 2)
        assert await caller.errno("rmdir", "d") == errno.ENOTEMPTY
        assert await caller.errno("unlink", "d/e") == errno.EISDIR
        assert await caller.errno("rmdir", "d/f") == errno.ENOTDIR
        await caller.rmdir("d/e")
        await caller.unlink("d/f")
        await caller.rmdir("d")
        assert await caller.list() == []
        assert (await file_system.namespace.inode(ROOT_INO)).nlink == 2
        assert await caller.errno("rmdir", "d") == errno.ENOENT


async def test_dots(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        outer, inner = await caller.mkdir("d"), await caller.mkdir("d/e")
        lookup = file_system.namespace.lookup
        for parent, name, expected in [
            (inner, b".", inner),
            (inner, b"..", outer),
            (outer, b"..", ROOT_INO),
            (ROOT_INO, b"..", ROOT_INO),
        ]:
            found = await lookup(parent, name)
            assert found is not None and found.ino == expected
        with pytest.raises(FileError):
            await lookup(12345, b".")


async def test_a_set_group_id_directory_hands_down_its_group(kind: str) -> None:
    async with mounted(kind) as file_system:
        create = file_system.namespace.create
        outer = await create(ROOT_INO, b"d", DIRECTORY_MODE | stat.S_ISGID, 1, 77)
        file = await create(outer.ino, b"f", FILE_MODE, 5, 6)
        inner = await create(outer.ino, b"e", DIRECTORY_MODE, 5, 6)
        assert (file.inode.uid, file.inode.gid) == (5, 77)
        assert inner.inode.gid == 77 and inner.inode.mode & stat.S_ISGID


async def test_links(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"content")
        await caller.mkdir("d")
        await caller.link("a", "d/b")
        inode = await file_system.namespace.inode(ino)
        assert inode.nlink == 2 and inode.size == 7 and inode.ctime_ns > inode.btime_ns
        assert await caller.errno("link", "a", "d/b") == errno.EEXIST
        assert await caller.errno("link", "d", "e") == errno.EPERM
        await caller.unlink("a")
        assert await caller.read("d/b") == b"content"
        assert (await file_system.namespace.inode(ino)).nlink == 1


async def test_symlinks(kind: str) -> None:
    async with mounted(kind) as file_system:
        create = file_system.namespace.create
        link = await create(ROOT_INO, b"l", 0o120777, 0, 0, target=b"x" * 4095)
        assert link.inode.size == 4095 and link.inode.target == b"x" * 4095
        with pytest.raises(FileError) as raised:
            await create(ROOT_INO, b"m", 0o120777, 0, 0, target=b"x" * 4096)
        assert raised.value.errno == errno.ENAMETOOLONG


async def test_rename_moves_and_replaces(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        first, second = await caller.create("a"), await caller.create("b")
        await caller.rename("a", "b")
        assert await caller.list() == ["b"] and await caller.find("b") == first
        file_system.handles.looked_up(second)
        assert await caller.errno("rename", "a", "c") == errno.ENOENT
        await caller.mkdir("d")
        await caller.mkdir("e")
        await caller.rename("d", "e")
        assert sorted(await caller.list()) == ["b", "e"]
        assert (await file_system.namespace.inode(ROOT_INO)).nlink == 3
        await caller.rename("b", "e/b")
        assert await caller.errno("rename", "e/b", "e/b") == 0
        assert await caller.find("e/b") == first


async def test_rename_between_directories_keeps_counts_and_parents(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        for path in ("a", "b", "a/d", "a/d/e"):
            await caller.mkdir(path)
        await caller.rename("a/d", "b/f")
        moved = await file_system.namespace.inode(await caller.find("b/f"))
        assert moved.parent == await caller.find("b")
        assert (await file_system.namespace.inode(await caller.find("a"))).nlink == 2
        assert (await file_system.namespace.inode(await caller.find("b"))).nlink == 3


@pytest.mark.parametrize(
    ("old", "new", "flags", "expected"),
    [
        ("d", "d/e/f", 0, errno.EINVAL),
        ("d", "d/x", 0, errno.EINVAL),
        ("d/e", "d", 0, errno.ENOTEMPTY),
        ("d", "f", 0, errno.ENOTDIR),
        ("f", "empty", 0, errno.EISDIR),
        ("empty", "d", 0, errno.ENOTEMPTY),
        ("f", "g", NOREPLACE, errno.EEXIST),
        ("f", "nothing", EXCHANGE, errno.ENOENT),
        ("d", "d/e", EXCHANGE, errno.EINVAL),
        ("d/e", "d", EXCHANGE, errno.EINVAL),
        ("f", "g", NOREPLACE | EXCHANGE, errno.EINVAL),
        ("f", "g", 4, errno.EINVAL),
        ("nothing", "g", 0, errno.ENOENT),
        ("f", "y" * 256, 0, errno.ENAMETOOLONG),
    ],
)
async def test_renames_that_are_refused(
    kind: str, old: str, new: str, flags: int, expected: int
) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        for path in ("d", "d/e", "empty"):
            await caller.mkdir(path)
        for path in ("f", "g"):
            await caller.create(path)
        before = sorted(await caller.list())
        assert await caller.errno("rename", old, new, flags) == expected
        assert sorted(await caller.list()) == before


async def test_rename_noreplace_and_exchange(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        await caller.mkdir("d")
        directory, file = await caller.mkdir("d/e"), await caller.create("f")
        await caller.rename("f", "g", NOREPLACE)
        await caller.rename("g", "d/e", EXCHANGE)
        assert await caller.find("d/e") == file and await caller.find("g") == directory
        assert (await file_system.namespace.inode(directory)).parent == ROOT_INO
        assert (await file_system.namespace.inode(ROOT_INO)).nlink == 4
        assert (await file_system.namespace.inode(await caller.find("d"))).nlink == 2


async def test_rename_onto_another_name_of_the_same_file_does_nothing(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        await caller.create("a")
        await caller.link("a", "b")
        await caller.rename("a", "b")
        assert sorted(await caller.list()) == ["a", "b"]


async def test_removed_directories_take_no_entries(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        ino = await caller.mkdir("d")
        await caller.create("f")
        file_system.handles.looked_up(ino)
        await caller.rmdir("d")
        for operation in (
            file_system.namespace.create(ino, b"x", FILE_MODE, 0, 0),
            file_system.namespace.link(await caller.find("f"), ino, b"x"),
            file_system.namespace.rename(ROOT_INO, b"f", ino, b"x"),
        ):
            with pytest.raises(FileError) as raised:
                await operation
            assert raised.value.errno == errno.ENOENT


async def test_attributes(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", 0o106755)
        update = file_system.namespace.set_attributes
        before = await file_system.namespace.inode(ino)
        inode = await update(ino, Update(atime_ns=-5, mtime_ns=10**19), privileged=False)
        assert (inode.atime_ns, inode.mtime_ns) == (-5, 2**63 - 1)
        assert inode.ctime_ns > before.ctime_ns and inode.mode == 0o106755
        inode = await update(ino, Update(uid=7, gid=8), privileged=True)
        assert (inode.uid, inode.gid, inode.mode) == (7, 8, 0o100755)
        inode = await update(ino, Update(mode=0o4711), privileged=True)
        assert inode.mode == 0o104711
        inode = await update(ino, Update(size=5), privileged=True)
        assert inode.mode == 0o104711 and inode.size == 5
        inode = await update(ino, Update(size=3), privileged=False)
        assert inode.mode == 0o100711 and inode.mtime_ns == inode.ctime_ns
        with pytest.raises(FileError) as raised:
            await update(ROOT_INO, Update(size=3), privileged=True)
        assert raised.value.errno == errno.EISDIR


async def test_a_directory_keeps_its_bits_when_it_changes_hands(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("d", DIRECTORY_MODE | stat.S_ISGID)
        inode = await file_system.namespace.set_attributes(ino, Update(gid=5), privileged=False)
        assert inode.mode & stat.S_ISGID


async def test_inode_numbers_are_not_used_again(kind: str) -> None:
    if kind != "model":
        return
    store = ModelStore()
    async with serving(store) as file_system:
        caller = Caller(file_system)
        first = await caller.create("a")
        await caller.unlink("a")
    for survivors in (0, len(store.unsynced)):
        after = store.power_cut(survivors)
        async with serving(after) as file_system:
            assert await Caller(file_system).create("b") > first


async def test_a_full_disk_refuses_new_names_and_takes_removals(kind: str) -> None:
    if kind != "model":
        return
    store = ModelStore(100_000)
    async with serving(store) as file_system:
        caller = Caller(file_system)
        await caller.create("a", data=b"x" * 90_000)
        with pytest.raises(NoSpaceError):
            await caller.create("b")
        assert await caller.list() == ["a"]
        await caller.rename("a", "c")
        await caller.unlink("c")
        await caller.create("b")


async def test_a_read_only_store_refuses_changes(kind: str) -> None:
    if kind != "model":
        return
    store = ModelStore()
    async with serving(store) as file_system:
        caller = Caller(file_system)
        await caller.create("a", data=b"abc")
        await file_system.sync()
        store.health.make_read_only("a test wants it", expected=True)
        for operation in ("create", "unlink", "mkdir"):
            with pytest.raises(ReadOnlyError):
                await getattr(caller, operation)("a" if operation == "unlink" else "b")
        with pytest.raises(ReadOnlyError):
            await caller.rename("a", "b")
        assert await caller.list() == ["a"] and await caller.read("a") == b"abc"


async def test_too_many_names(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINKS_MAX", 3)
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        await caller.create("a")
        await caller.link("a", "b")
        await caller.link("a", "c")
        assert await caller.errno("link", "a", "d") == errno.EMLINK
        assert await caller.list() and (await file_system.namespace.inode(2)).nlink == 3
        await caller.unlink("b")
        await caller.link("c", "d")
