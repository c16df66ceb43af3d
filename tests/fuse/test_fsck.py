"""fsck of the file system: a tree in order is clean, and each planted break of an F is found.

Role: breaks are planted as records, the way a bug would leave them.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Awaitable, Callable

import pytest

from shardfs.checking.models.store_model import ModelStore
from shardfs.engine.findings import Finding, Report
from shardfs.fuse import fsck
from shardfs.fuse.access_lists import ACCESS, DEFAULT, GROUP_OWNER, MASK, OTHERS, OWNER
from shardfs.fuse.door import BatchDoor
from shardfs.fuse.files_repair import repair_files
from shardfs.fuse.finding_names import name_files
from shardfs.fuse.fsck import check_files
from shardfs.fuse.keys import (
    FACT_KEY,
    ROOT_INO,
    entry_key,
    inode_key,
    name_page_key,
    orphan_key,
    shard_key,
    truncation_key,
    xattr_key,
)
from shardfs.fuse.records import (
    AccessEntry,
    Entry,
    Facts,
    Inode,
    decode_facts,
    decode_inode,
    encode_access_list,
    encode_entry,
    encode_facts,
    encode_inode,
)
from tests.fuse.harness import DIRECTORY_MODE, Caller, serving


async def tree() -> tuple[ModelStore, dict[str, int]]:
    """A store with a few files and directories, and their inode numbers."""
    store = ModelStore(64 << 20)
    inos = {}
    async with serving(store) as file_system:
        caller = Caller(file_system)
        for path in ("a", "a/b", "c"):
            inos[path] = await caller.create(path, DIRECTORY_MODE)
        for path in ("file", "a/b/deep"):
            inos[path] = await caller.create(path, data=b"hello" * 2000)
        await file_system.xattrs.set(inos["file"], b"user.colour", b"green")
        await file_system.namespace.link(inos["file"], inos["c"], b"twin")
    report = await check_files(store)
    assert report.is_clean, report.findings
    assert report.counts == {"names": 6, "inodes": 6, "file_bytes": 20000}
    return store, inos


async def plant(store: ModelStore, change: Callable[[BatchDoor], None]) -> None:
    batch = store.batch()
    change(batch)
    await store.sync(store.apply(batch))


async def change_inode(store: ModelStore, ino: int, change: Callable[[Inode], Inode]) -> None:
    record = await store.get_record(inode_key(ino))
    assert record is not None
    inode = change(decode_inode(record))
    await plant(store, lambda batch: batch.put(inode_key(ino), encode_inode(inode)))


Store = ModelStore
Inos = dict[str, int]


async def f1_missing(store: Store, inos: Inos) -> None:
    entry = encode_entry(Entry(4000, 8))
    await plant(store, lambda batch: batch.put(entry_key(ROOT_INO, b"ghost"), entry))


async def f1_type(store: Store, inos: Inos) -> None:
    entry = encode_entry(Entry(inos["file"], 6))
    await plant(store, lambda batch: batch.put(entry_key(ROOT_INO, b"file"), entry))


async def f2_file(store: Store, inos: Inos) -> None:
    await change_inode(store, inos["file"], lambda inode: inode._replace(nlink=3))


async def f2_directory(store: Store, inos: Inos) -> None:
    await change_inode(store, inos["a"], lambda inode: inode._replace(nlink=2))


async def f3_lost(store: Store, inos: Inos) -> None:
    await plant(store, lambda batch: batch.delete(entry_key(inos["a/b"], b"deep")))


async def f3_named_orphan(store: Store, inos: Inos) -> None:
    await plant(store, lambda batch: batch.put(orphan_key(inos["file"]), b""))


async def f4_two_names(store: Store, inos: Inos) -> None:
    entry = encode_entry(Entry(inos["a/b"], 4))
    await plant(store, lambda batch: batch.put(entry_key(inos["c"], b"b"), entry))


async def f4_parent(store: Store, inos: Inos) -> None:
    await change_inode(store, inos["a/b"], lambda inode: inode._replace(parent=inos["c"]))


async def f4_loop(store: Store, inos: Inos) -> None:
    def change(batch: BatchDoor) -> None:
        batch.delete(entry_key(ROOT_INO, b"a"))
        batch.put(entry_key(inos["a/b"], b"a"), encode_entry(Entry(inos["a"], 4)))

    await plant(store, change)


async def f5_size(store: Store, inos: Inos) -> None:
    await change_inode(store, inos["c"], lambda inode: inode._replace(size=9))


async def f6_used(store: Store, inos: Inos) -> None:
    await change_inode(store, inos["file"], lambda inode: inode._replace(used=1))


async def f6_behind_the_end(store: Store, inos: Inos) -> None:
    await change_inode(store, inos["file"], lambda inode: inode._replace(size=100))


async def f6_no_file(store: Store, inos: Inos) -> None:
    shard = await store.get_shard(shard_key(inos["file"], 0))
    assert shard is not None
    key = shard_key(inos["c"], 0)
    await plant(store, lambda batch: batch.put_shard(key, shard.pieces, None))


async def f7_xattrs(store: Store, inos: Inos) -> None:
    await plant(store, lambda batch: batch.delete(xattr_key(inos["file"], b"user.colour")))


async def f8_next(store: Store, inos: Inos) -> None:
    await plant(store, lambda batch: batch.put(FACT_KEY, encode_facts(Facts(2, 1))))


async def f8_count(store: Store, inos: Inos) -> None:
    record = await store.get_record(FACT_KEY)
    assert record is not None
    facts = decode_facts(record)
    wrong = encode_facts(facts._replace(inodes=facts.inodes + 1))
    await plant(store, lambda batch: batch.put(FACT_KEY, wrong))


async def f9_mark(store: Store, inos: Inos) -> None:
    await plant(store, lambda batch: batch.put(truncation_key(4000), b""))


async def f9_key(store: Store, inos: Inos) -> None:
    await plant(store, lambda batch: batch.put(b"something else", b""))


async def f9_record(store: Store, inos: Inos) -> None:
    await plant(store, lambda batch: batch.put(inode_key(inos["file"]), b"nonsense"))


async def f9_facts(store: Store, inos: Inos) -> None:
    await plant(store, lambda batch: batch.delete(FACT_KEY))


async def plant_list(store: Store, inos: Inos, name: bytes, mode: int, count: int) -> None:
    tags = (OWNER, GROUP_OWNER, MASK, OTHERS)[:count]
    value = encode_access_list([AccessEntry(tag, 6, 0xFFFFFFFF) for tag in tags])
    await plant(store, lambda batch: batch.put(xattr_key(inos["file"], name), value))
    changed = stat.S_IFREG | mode
    await change_inode(store, inos["file"], lambda inode: inode._replace(xattrs=2, mode=changed))


async def f10_no_list(store: Store, inos: Inos) -> None:
    await plant_list(store, inos, DEFAULT, 0o666, 2)


async def f10_another_mode(store: Store, inos: Inos) -> None:
    await plant_list(store, inos, ACCESS, 0o664, 4)


async def f11_no_page(store: Store, inos: Inos) -> None:
    pieces = store.append_pieces(name_page_key(9), 0, (b"no page",))
    await plant(store, lambda batch: batch.put_shard(name_page_key(9), pieces, None))


PLANTS = [value for name, value in list(globals().items()) if re.match(r"f\d+_", name)]


@pytest.mark.parametrize("break_it", PLANTS, ids=lambda value: value.__name__)
async def test_a_planted_break_is_found(break_it: Callable[[Store, Inos], Awaitable[None]]) -> None:
    store, inos = await tree()
    await break_it(store, inos)
    found = {finding.invariant for finding in (await check_files(store)).findings}
    expected = break_it.__name__.partition("_")[0].upper()
    assert expected in found


@pytest.mark.parametrize("break_it", PLANTS, ids=lambda value: value.__name__)
async def test_a_planted_break_is_repaired(
    break_it: Callable[[Store, Inos], Awaitable[None]],
) -> None:
    """Once repaired it is clean, a second repair does nothing, and no content is gone."""
    store, inos = await tree()
    await break_it(store, inos)
    done: list[str] = []
    await repair_files(store, lambda what, _: done.append(what))
    assert done and (await check_files(store)).findings == []
    again: list[str] = []
    await repair_files(store, lambda what, _: again.append(what))
    assert again == []
    async with serving(store) as file_system:
        for ino in (inos["file"], inos["a/b/deep"]):
            assert await file_system.writeback.read(ino, 0, 1 << 20) == b"hello" * 2000


async def test_files_in_the_making_are_no_findings() -> None:
    """A crash may leave unfinished truncations, and removed files that are not freed yet."""
    store, inos = await tree()
    await change_inode(store, inos["file"], lambda inode: inode._replace(size=100))
    await plant(store, lambda batch: batch.put(truncation_key(inos["file"]), b""))

    def remove(batch: BatchDoor) -> None:
        batch.delete(entry_key(inos["a/b"], b"deep"))
        batch.put(orphan_key(inos["a/b/deep"]), b"")

    await plant(store, remove)
    await change_inode(store, inos["a/b/deep"], lambda inode: inode._replace(nlink=0, used=7))
    await change_inode(store, inos["a/b"], lambda inode: inode._replace(size=0))
    report = await check_files(store)
    assert report.is_clean, report.findings


async def test_an_empty_store_is_clean() -> None:
    report = await check_files(ModelStore(64 << 20))
    assert report.is_clean
    assert report.counts == {}


async def test_findings_get_the_names_of_files() -> None:
    store, inos = await tree()
    deep = inos["a/b/deep"]
    report = Report()
    report.add(Finding("E11", "rot", "key", shard_key(deep, 1), 10, 20))
    report.add(Finding("F2", "links", f"inode {inos['a/b']}"))
    report.add(Finding("F7", "value", "key", xattr_key(inos["file"], b"user.colour")))
    report.add(Finding("F2", "lost", "inode 4000"))
    report.add(Finding("E8", "account", "extent 3"))
    await name_files(store, report)
    start = 4194304 + 10
    assert [finding.where for finding in report.findings][:2] == [
        f"/a/b/deep (inode {deep}) bytes {start} to {start + 19}",
        f"/a/b (inode {inos['a/b']})",
    ]
    assert "user.colour" in report.findings[2].where
    assert report.findings[3].where == "inode 4000"
    assert report.findings[4].where == "extent 3"


def test_every_invariant_is_planted_here() -> None:
    documented = set(re.findall(r"^    (F\d+)\.", fsck.__doc__ or "", re.MULTILINE))
    planted = {plant.__name__.partition("_")[0].upper() for plant in PLANTS}
    assert documented == planted
