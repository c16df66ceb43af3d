"""Lets go of data that cannot be read any more, or deletes the files that have lost some.

Role: the part of a repair that is about the bytes of files (repair.py has the order).

Invariants:
    I1. Each file changes in a batch that is right by itself; a repair may end between any two.
    I2. What is lost is told, by inode and range.

Not here: one shard's damage (engine/damage.py), names and counts (files_repair.py).
"""

from __future__ import annotations

from shardfs import limits
from shardfs.engine.damage import give_up_damage
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError
from shardfs.fuse.door import behind
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    INODE_PREFIX,
    NAME_PAGE_PREFIX,
    NAMES_KEY,
    decode_file_key,
    inode_key,
    orphan_key,
)
from shardfs.fuse.paths import find_paths
from shardfs.fuse.records import decode_entry, decode_inode, encode_inode
from shardfs.fuse.repair_report import RepairReport


async def give_up_damaged_data(store: Store, report: RepairReport) -> None:
    """Every shard of a file lets go of what cannot be read; so does every name page."""
    async for key, value in store.scan(b"\0", b"\xff" * (limits.KEY_BYTES_MAX + 1)):
        if not isinstance(value, Shard):
            continue
        loss = await give_up_damage(store, key, value)
        if loss is None:
            continue
        await store.sync()
        if key[:1] == NAME_PAGE_PREFIX:
            report.tell("a damaged name page: written anew")
            await _drop_page(store, key)
            continue
        try:
            about = decode_file_key(key)
        except CorruptionError:
            continue
        base = (about.shard or 0) * limits.SHARD_BYTES
        report.tell(f"{loss.copied_bytes} bytes that are left of damaged chunks copied", about.ino)
        for start, end in loss.lost:
            report.lose(about.ino, base + start, base + end)


async def _drop_page(store: Store, key: bytes) -> None:
    shard = await store.get_shard(key)
    batch = store.batch(essential=True)
    if shard is not None:
        batch.delete_shard(key, shard)
    batch.delete(NAMES_KEY)
    await store.sync(store.apply(batch))


async def delete_damaged_files(store: Store, report: RepairReport) -> None:
    """Delete every file with bytes that are recorded as lost."""
    doomed: set[int] = set()
    async for key, value in store.scan(INODE_PREFIX, behind(INODE_PREFIX)):
        if isinstance(value, Shard) and any(piece.is_damaged for piece in value.pieces):
            doomed.add(decode_file_key(key).ino)
    paths = await find_paths(store, doomed)
    report.deleted += [name for names in paths.values() for name in names]
    # The names go first, in batches that leave orphans: what is left is freed by the next mount.
    names: dict[int, list[bytes]] = {}
    async for key, value in store.scan(ENTRY_PREFIX, behind(ENTRY_PREFIX)):
        if not isinstance(value, Shard) and decode_entry(value).ino in doomed:
            names.setdefault(decode_entry(value).ino, []).append(key)
    for ino in doomed:
        record = await store.get_record(inode_key(ino))
        if record is None:
            continue
        batch = store.batch(essential=True)
        batch.put(orphan_key(ino), b"")
        batch.put(inode_key(ino), encode_inode(decode_inode(record)._replace(nlink=0)))
        for key in names.get(ino, ()):
            batch.delete(key)
        batch.delete(NAMES_KEY)
        await store.sync(store.apply(batch))
