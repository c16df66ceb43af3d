"""Fills a new tree with what is left of a broken one, and with what frames and name pages tell.

Role: certain entries are copied. For what is doubtful or lost, inodes and names come from the name
pages, data from the frames that belong to the shard.

Invariants:
    I1. What is certain in the remains stays as it is, so a file that the damage has not touched is
        the same, byte for byte.
    I2. Bytes of a touched file are those of its newest frames; where none is found, and it is not
        known that a hole was there, they are recorded as lost. Nothing becomes zeros silently.
    I3. No piece refers to what is not there: a locator whose extent holds another epoch, or none,
        is recorded as lost.

Not here: reading the remains (tree_remains.py), making names and counts fit (files_repair.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.device import Device
from shardfs.engine.framing import decode_head, head_bytes
from shardfs.engine.layout import ExtentState
from shardfs.engine.lsm.entry import TOMBSTONE, decode_value
from shardfs.engine.pieces import Locator, Piece, Shard, lost_pieces, splice, truncate
from shardfs.engine.store import Store
from shardfs.engine.superblock_record import ExtentEntry
from shardfs.errors import CorruptionError, DeviceError
from shardfs.fuse.frame_index import DataFrame, FrameIndex
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    INODE_PREFIX,
    NAME_PAGE_PREFIX,
    decode_entry_key,
    decode_file_key,
    inode_key,
    shard_key,
    shards_end,
)
from shardfs.fuse.records import Inode, decode_entry, decode_inode, encode_inode
from shardfs.fuse.repair_changes import Tell
from shardfs.fuse.tree_remains import TreeRemains

SHARD_BYTES: Final = limits.SHARD_BYTES
_BATCH_CHANGES: Final = 64
_CHECKPOINT_CHANGES: Final = 16 * limits.KIB
_KEY_END: Final = b"\xff" * (limits.KEY_BYTES_MAX + 1)


class Reconstruction:
    """One filling of a new tree.

    Args:
        store: empty, and nobody else changes it.
        device: where the frames are.
        entries: the extents of the store.
        tell: hears of each file that is touched.
    """

    def __init__(
        self,
        store: Store,
        device: Device,
        entries: Iterable[ExtentEntry],
        remains: TreeRemains,
        index: FrameIndex,
        tell: Tell,
    ) -> None:
        self._store = store
        self._device = device
        self._extents = {entry.extent: entry for entry in entries}
        self._remains = remains
        self._index = index
        self._tell = tell
        self._batch = store.batch(essential=True)
        self._pending = 0
        self._written = 0

    async def run(self) -> None:
        """Fill the tree.

        Durable when: the store is closed.

        Raises:
            NoSpaceError, DeviceError, ReadOnlyError: the tree is not whole.
        """
        touched: set[int] = set()
        for key, value, doubtful in self._remains.entries(b"\0", _KEY_END):
            if not doubtful:
                if value != TOMBSTONE:
                    await self._copy(key, value)
            elif key[:1] == INODE_PREFIX:
                ino = _ino_of(key)
                if ino is not None:
                    touched.add(ino)
            elif key[:1] == ENTRY_PREFIX:
                await self._doubtful_name(key, value)
            elif key[:1] != NAME_PAGE_PREFIX and value != TOMBSTONE:
                await self._copy(key, value)
        if self._remains.losses:
            for ino in self._index.inos():
                touched.discard(ino)
                await self._file(ino)
            for ino in sorted(touched):  # without any frame
                await self._file(ino)
        await self._flush()

    # --- changes

    async def _copy(self, key: bytes, value: bytes) -> None:
        try:
            found = decode_value(value, 0)
        except CorruptionError as error:
            self._tell(f"an entry that does not decode ({error}): dropped", _ino_of(key))
            return
        if isinstance(found, Shard):
            await self._put_shard(key, found.pieces)
        elif found is not None:
            self._batch.put(key, found)
            await self._count()

    async def _put_shard(self, key: bytes, pieces: tuple[Piece, ...]) -> None:
        checked = tuple(
            piece if piece.is_damaged or self._is_there(piece.locator) else piece.as_damaged()
            for piece in pieces
        )
        if checked != pieces:
            self._tell(
                "data in an extent that holds something else: recorded as lost", _ino_of(key)
            )
        self._batch.put_shard(key, checked, None)
        await self._count()

    def _is_there(self, locator: Locator) -> bool:
        entry = self._extents.get(locator.extent)
        return (
            entry is not None
            and entry.state == ExtentState.SEALED
            and entry.epoch == locator.epoch
            and locator.offset + locator_bytes(locator) <= entry.write_pointer
        )

    async def _count(self) -> None:
        await trio.lowlevel.checkpoint()
        self._pending += 1
        if self._pending >= _BATCH_CHANGES:
            await self._flush()

    async def _flush(self) -> None:
        if not self._pending:
            return
        self._store.apply(self._batch)
        self._batch = self._store.batch(essential=True)
        self._written += self._pending
        self._pending = 0
        await self._store.sync()
        if self._written >= _CHECKPOINT_CHANGES:
            self._written = 0
            await self._store.checkpoint()
            while await self._store.compact():
                pass

    # --- what is doubtful or lost

    async def _doubtful_name(self, key: bytes, value: bytes) -> None:
        """Kept, unless the name page of its inode knows better."""
        if value == TOMBSTONE:
            return
        try:
            parent, _, name = decode_entry_key(key)
            record = decode_value(value, 0)
            ino = decode_entry(record if isinstance(record, bytes) else b"").ino
        except CorruptionError:
            return
        known = self._index.named(ino)
        if self._index.is_deleted(ino) or (known is not None and (parent, name) not in known.names):
            return
        await self._copy(key, value)

    async def _file(self, ino: int) -> None:
        """One inode with its shards and attributes, as far as they are not certain."""
        found = self._remains.get(inode_key(ino))
        is_certain = found is not None and not found[1]
        if found is None and not self._remains.is_lost(inode_key(ino)):
            return  # certainly deleted
        if is_certain:
            assert found is not None
            inode = _decoded(found[0])
            if inode is None:
                return
        else:
            if self._index.is_deleted(ino):
                return
            inode = self._best_inode(ino, found)
            if inode is not None:
                self._batch.put(inode_key(ino), encode_inode(inode))
                await self._count()
                self._tell("inode reconstructed", ino)
        await self._attributes(ino)
        if inode is None or inode.is_regular:
            await self._shards(ino, inode)

    def _best_inode(self, ino: int, found: tuple[bytes, bool] | None) -> Inode | None:
        """The newest of what tree, name page and log have of an inode."""
        page, logged = self._index.named(ino), self._index.logged(ino)
        candidates = [
            _decoded(found[0]) if found is not None else None,
            page.inode if page is not None else None,
            logged.inode if logged is not None else None,
        ]
        return max(
            (each for each in candidates if each is not None),
            key=lambda inode: inode.ctime_ns,
            default=None,
        )

    async def _attributes(self, ino: int) -> None:
        start, end = shards_end(ino), inode_key(ino)[:-1] + b"\x03"
        for key, value, doubtful in self._remains.entries(start, end):
            if doubtful and value != TOMBSTONE:
                await self._copy(key, value)

    async def _shards(self, ino: int, inode: Inode | None) -> None:
        page = self._index.page_sequence(ino) or 0
        size = inode.size if inode is not None and page > self._index.newest_data(ino) else None
        numbers: dict[int, tuple[Piece, ...]] = {}
        certain: set[int] = set()
        for key, value, doubtful in self._remains.entries(shard_key(ino, 0), shards_end(ino)):
            number = decode_file_key(key).shard
            if number is None:
                continue
            shard = None if value == TOMBSTONE else decode_value(value, 0)
            if not doubtful:
                certain.add(number)
            if isinstance(shard, Shard):
                numbers[number] = shard.pieces
        used = sum(_length(numbers[each]) for each in certain if each in numbers)
        rebuilt: dict[int, tuple[Piece, ...]] = {
            number: pieces for number, pieces in numbers.items() if number not in certain
        }
        for frame in self._index.data(ino):
            key = shard_key(ino, frame.shard)
            if frame.shard in certain or not (
                frame.shard in rebuilt
                or self._remains.is_lost(key)
                or key_is_doubtful(self._remains, key)
            ):
                continue
            pieces = await self._with_frame(rebuilt.get(frame.shard, ()), frame)
            rebuilt[frame.shard] = pieces
        if size is not None:
            for number, pieces in rebuilt.items():
                rebuilt[number] = truncate(pieces, max(0, size - number * SHARD_BYTES))
        used += sum(map(_length, rebuilt.values()))
        if inode is not None and used < inode.used:
            self._lose_gaps(ino, inode, certain, rebuilt)
        for number, pieces in rebuilt.items():
            if pieces:
                await self._put_shard(shard_key(ino, number), pieces)
        if rebuilt:
            self._tell("data reconstructed from its frames", ino)

    async def _with_frame(self, pieces: tuple[Piece, ...], frame: DataFrame) -> tuple[Piece, ...]:
        """The pieces with a frame put over those that are older."""
        newest = max((piece.locator.sequence for piece in pieces), default=-1)
        if frame.sequence <= newest:
            return pieces
        extent, offset = divmod(frame.at, self._store.identity.extent_bytes)
        size = head_bytes(limits.KEY_BYTES_MAX, frame.length)
        try:
            head = decode_head(await self._device.read(frame.at, size))
        except (CorruptionError, DeviceError):
            return pieces
        locator = Locator(
            extent,
            head.epoch,
            offset,
            head.payload_bytes,
            head.sequence,
            len(head.owner),
            head.checksums,
        )
        if not self._is_there(locator):
            return pieces
        return splice(pieces, frame.start, locator, frame.length)

    def _lose_gaps(
        self, ino: int, inode: Inode, certain: set[int], rebuilt: dict[int, tuple[Piece, ...]]
    ) -> None:
        """Some data was not found, and nobody knows where it was: no gap is taken for a hole."""
        count = -(-inode.size // SHARD_BYTES)
        numbers = range(count) if count <= limits.KIB else sorted(rebuilt)
        lost = 0
        for number in numbers:
            if number in certain or not self._is_open(ino, number):
                continue
            end = min(SHARD_BYTES, inode.size - number * SHARD_BYTES)
            filled: list[Piece] = []
            at = 0
            for piece in rebuilt.get(number, ()):
                filled += [*lost_pieces(at, piece.start), piece]
                lost += piece.start - at
                at = piece.end
            filled += lost_pieces(at, end)
            lost += max(0, end - at)
            rebuilt[number] = tuple(filled)
        self._tell(f"{lost} bytes whose data was not found: recorded as lost", ino)

    def _is_open(self, ino: int, number: int) -> bool:
        key = shard_key(ino, number)
        return self._remains.is_lost(key) or key_is_doubtful(self._remains, key)


def key_is_doubtful(remains: TreeRemains, key: bytes) -> bool:
    """There is an entry, and a newer one may be lost."""
    found = remains.get(key)
    return found is not None and found[1]


def _length(pieces: Iterable[Piece]) -> int:
    return sum(piece.length for piece in pieces)


def _decoded(value: bytes) -> Inode | None:
    if value == TOMBSTONE:
        return None
    try:
        record = decode_value(value, 0)
        return decode_inode(record) if isinstance(record, bytes) else None
    except CorruptionError:
        return None


def _ino_of(key: bytes) -> int | None:
    try:
        return decode_file_key(key).ino
    except CorruptionError:
        return None
