"""What readers ask of an open store: values by key, ranges of keys, bytes of shards.

Role: the half of the store's door that changes nothing.

Invariants:
    I1. What is returned was current at the moment of return.

Not here: changes (store.py), search order (lsm/tree.py), the way to the bytes (chunks.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager
from operator import itemgetter

from shardfs.engine.batch import check_key
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.gathering import Gatherer
from shardfs.engine.lsm.entry import TOMBSTONE, decode_value
from shardfs.engine.lsm.tree import UNREAD, Tree, Unread
from shardfs.engine.pieces import Entry, Locator, Piece, Shard
from shardfs.engine.recent_shards import RecentShards
from shardfs.engine.shards import ShardData
from shardfs.errors import CorruptionError


class Lookups:
    """The reading half of a store.

    Args:
        tree, chunks, shards, recent: of the store.
        gatherer: told of shards that are looked up.
    """

    def __init__(
        self,
        tree: Tree,
        chunks: ChunkStore,
        shards: ShardData,
        recent: RecentShards,
        gatherer: Gatherer,
    ) -> None:
        self._tree = tree
        self.bring = tree.bring
        self._chunks = chunks
        self._shards = shards
        self._recent = recent
        self._gatherer = gatherer

    async def get(self, key: bytes, start: int = 0, length: int | None = None) -> bytes | None:
        """The value of a key, or bytes [start, start+length) of it; None when there is none.

        Raises:
            DeviceError, CorruptionError: it cannot be read as it was written.
        """
        check_key(key)
        value = await self._load(key)
        if value is None:
            return None
        if isinstance(value, bytes):
            return value[start:] if length is None else value[start : start + length]
        stop = value.length if length is None else min(value.length, start + length)
        return await self.read_shard(value, start, max(0, stop - start))

    async def get_record(self, key: bytes) -> bytes | None:
        """The record of a key, or None. Checkpoints: only when a tree block is not cached.

        Raises:
            DeviceError, CorruptionError: the tree cannot be read there.
        """
        value = await self._load(key)
        if isinstance(value, Shard):
            raise CorruptionError("a shard stands where a record should", f"key {key.hex()}")
        return value

    def find_record(self, key: bytes) -> bytes | Unread | None:
        """What get_record gives, or UNREAD where it would wait; see Tree.find_record."""
        return self._tree.find_record(key)

    async def records(self, start: bytes, end: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """The first records of [start, end); see Tree.records."""
        return await self._tree.records(start, end, count_max)

    async def get_shard(self, key: bytes) -> Shard | None:
        """The shard of a key, or None. Checkpoints: only when a tree block is not cached.

        Raises:
            DeviceError, CorruptionError: the tree cannot be read there.
        """
        return self._as_shard(key, await self._load(key))

    def find_shard(self, key: bytes) -> Shard | Unread | None:
        """What get_shard gives, or UNREAD where it would wait.

        Raises:
            CorruptionError: something else stands there.
        """
        value = self._tree.find(key)
        if value is None:
            return UNREAD
        return self._as_shard(key, self._value_of(key, value))

    async def scan(self, start: bytes, end: bytes) -> AsyncGenerator[Entry, None]:
        """Records (as bytes) and shards of [start, end), in key order.

        Changes made while scanning may or may not be seen; what does not change is seen once. A
        shard can be read, or pinned, at once; who awaits before, and who rests while scanning,
        holds no extent back, and has to look it up again.

        Raises:
            DeviceError, CorruptionError: the tree cannot be read there.
        """
        while True:
            page = await self._tree.page(start, end)
            generation = self._tree.generation
            found = [(key, decode_value(page.entries[key], generation)) for key in page.entries]
            for key, value in sorted(found, key=itemgetter(0)):
                if isinstance(value, Shard) and not self._shards.are_there(value.pieces):
                    value = await self._tree.get_value(key)
                if value is not None:
                    yield key, value
            if page.horizon is None:
                return
            start = page.horizon + b"\0"

    async def read_chunk(self, locator: Locator, start: int, length: int) -> bytes | memoryview:
        """Bytes [start, start+length) of a chunk's payload, verified; at most one device read.

        Raises:
            DeviceError, CorruptionError: they cannot be read as they were written.
        """
        return await self._chunks.get(locator, start, length)

    def pinned(self, pieces: Sequence[Piece]) -> AbstractContextManager[None]:
        """Keeps the chunks of these pieces from being reclaimed while the body runs."""
        return self._shards.pinned(pieces)

    async def read_shard(self, shard: Shard, start: int, length: int) -> bytes:
        """Bytes [start, start+length) of a shard; holes and what lies behind it are zeros.

        Raises:
            DeviceError, CorruptionError: they cannot be read as they were written.
        """
        return await self._shards.read(shard.pieces, start, length)

    async def _load(self, key: bytes) -> bytes | Shard | None:
        """The value of a key, current at the moment of return."""
        value = self._tree.find(key)
        if value is None:
            value = await self._tree.get(key)
        return self._value_of(key, value)

    def _value_of(self, key: bytes, value: bytes | None) -> bytes | Shard | None:
        if value is None or value == TOMBSTONE:
            return None
        found = self._recent.shard_or_record(key, value, self._tree.generation)
        if isinstance(found, Shard):
            self._gatherer.seen(key, found)
        return found

    @staticmethod
    def _as_shard(key: bytes, value: bytes | Shard | None) -> Shard | None:
        if isinstance(value, bytes):
            raise CorruptionError("a record stands where a shard should", f"key {key.hex()}")
        return value
