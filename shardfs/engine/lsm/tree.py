"""The tree as readers see it: memtable, frozen memtable, runs.

Role: point look-ups and ordered scans over everything, newest first; changes go to the
memtable. The set of runs is an immutable tuple that is replaced as a whole.

Invariants:
    I1. Search order is memtable, frozen memtable, then runs from newest to oldest.
    I2. `generation` rises whenever entries move out of memory or runs are replaced: what was
        read at the same generation, and is in neither memtable, has not changed since.
    I3. A page of a scan is the state of the tree at one moment.

Not here: durability (commit.py), the background work that replaces runs (checkpoint.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import Final

from shardfs.engine.lsm.entry import RECORD, TOMBSTONE, decode_value, encode_shard
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.lsm.merge import Page, Run, candidates, load_page, merge_parts
from shardfs.engine.lsm.segment import Segment
from shardfs.engine.pieces import Shard
from shardfs.errors import CorruptionError

_PAGE_ENTRIES = 256
_ABSENT_KEYS_MAX = 4096
"""Keys remembered as looked up and not found; who makes a shard does so right after looking."""


class Unread(Enum):
    """In place of a value: what it is says a block that is not in memory."""

    UNREAD = "unread"


UNREAD: Final = Unread.UNREAD


class Tree:
    """Entries of the store, by key.

    Args:
        runs: from the manifest, oldest first.
    """

    def __init__(self, runs: tuple[Run, ...] = ()) -> None:
        self.memtable = Memtable()
        self.frozen: Memtable | None = None
        self.runs = runs
        self.generation = 0
        self._absent: dict[bytes, int] = {}

    def set(self, key: bytes, value: bytes) -> None:
        """Put one encoded value into the memtable."""
        self.memtable.set(key, value)

    def update(self, changes: dict[bytes, bytes]) -> None:
        """Put encoded values into the memtable."""
        self.memtable.update(changes)

    @property
    def memory_bytes(self) -> int:
        """About what is only in memory will take as runs."""
        frozen = self.frozen
        return self.memtable.run_bytes + (frozen.run_bytes if frozen is not None else 0)

    def in_memory(self, key: bytes) -> bytes | None:
        """The encoded value if one of the memtables has it (a tombstone too), else None."""
        value = self.memtable.entries.get(key)
        if value is None and self.frozen is not None:
            value = self.frozen.entries.get(key)
        return value

    def is_surely_absent(self, key: bytes) -> bool:
        """Whether memory and filters say that there is no such key. False says nothing."""
        if key in self.memtable.entries or self.frozen is not None:
            return False
        return not self.runs or next(candidates(self.runs, key), None) is None

    def find(self, key: bytes) -> bytes | None:
        """The encoded value, TOMBSTONE if there is none, or None if a block has to be read to know.

        What `get` does without waiting.
        """
        value = self.in_memory(key)
        if value is not None:
            return value
        if self._absent.get(key) == self.generation:
            return TOMBSTONE
        for segment in candidates(self.runs, key):
            block = segment.cached_block(key)
            if block is None:
                return None
            at = bisect_left(block.keys, key)
            if at < len(block.keys) and block.keys[at] == key:
                value = block.values[at]
                break
        if value is None or value == TOMBSTONE:
            self._note_absent(key)
            return TOMBSTONE
        return value

    async def get(self, key: bytes) -> bytes | None:
        """The encoded value, None when there is none; a tombstone counts as none.

        Checkpoints: only when a block is not cached.

        Raises:
            DeviceError, CorruptionError: a block cannot be read.
        """
        while True:
            value = self.in_memory(key)
            if value is not None:
                return None if value == TOMBSTONE else value
            generation = self.generation
            try:
                for segment in candidates(self.runs, key):
                    value = await segment.get(key)
                    if value is not None:
                        break
            except CorruptionError:
                # A segment that was replaced meanwhile may have been overwritten.
                if generation == self.generation:
                    raise
            if generation == self.generation and self.in_memory(key) is None:
                if value is not None and value != TOMBSTONE:
                    return value
                self._note_absent(key)
                return None

    async def get_value(self, key: bytes) -> bytes | Shard | None:
        """The record or shard of a key, current at the moment of return; see `get`."""
        value = await self.get(key)
        return None if value is None else decode_value(value, self.generation)

    async def bring(self, keys: Sequence[bytes]) -> None:
        """Have in memory what will tell the values of keys, as far as that saves device reads: of
        keys that are neighbours one read brings many. Trouble is left for who asks for a key.

        Checkpoints: only when blocks are not cached.
        """
        wanted: dict[Segment, set[int]] = {}
        for key in keys:
            if self.in_memory(key) is None:
                segment = next(candidates(self.runs, key), None)
                if segment is not None:
                    wanted.setdefault(segment, set()).add(segment.block_number(key))
        for segment, numbers in wanted.items():
            await segment.bring(sorted(numbers))

    def is_current(self, key: bytes, base: Shard | None, generation: int) -> bool:
        """Whether `base` is still the shard of `key`, as read at `generation`.

        Absence (`base` is None) carries no generation: False then also means that nobody has
        looked since the runs were replaced; after a `get` the answer is exact.
        """
        value = self.in_memory(key)
        if base is None:
            return self._is_absent_from_runs(key) if value is None else value == TOMBSTONE
        if value is None:
            return generation == self.generation
        return value == encode_shard(base.pieces)

    def _is_absent_from_runs(self, key: bytes) -> bool:
        if self._absent.get(key) == self.generation:
            return True
        return next(candidates(self.runs, key), None) is None

    def _note_absent(self, key: bytes) -> None:
        self._absent.pop(key, None)
        self._absent[key] = self.generation
        if len(self._absent) > _ABSENT_KEYS_MAX:
            del self._absent[next(iter(self._absent))]

    async def page(self, start: bytes, end: bytes, count_max: int = _PAGE_ENTRIES) -> Page:
        """The tree's entries from `start`, tombstones included, as of one moment (I3).

        Args:
            count_max: of entries from each run and memtable: a page that covers less than
                [start, end) has as many at least.

        Raises:
            DeviceError, CorruptionError: a block cannot be read.
        """
        while True:
            generation = self.generation
            try:
                stored = await load_page(self.runs, start, end, count_max)
            except CorruptionError:
                if generation == self.generation:
                    raise
                continue
            if generation == self.generation:
                return self._with_memory(stored, start, end, count_max)

    def _with_memory(self, stored: Page, start: bytes, end: bytes, count_max: int) -> Page:
        pairs = sorted(stored.entries.items())
        if stored.horizon is not None and not pairs:
            pairs = [(stored.horizon, TOMBSTONE)]
        parts = [(pairs, stored.horizon is None)]
        for table in (self.frozen, self.memtable):
            if table is not None:
                entries = table.range(start, end, count_max)
                parts.append((entries, len(entries) < count_max))
        return merge_parts(parts)

    def find_record(self, key: bytes) -> bytes | Unread | None:
        """The record of a key, None if there is none, UNREAD if a block has to be read to know.

        Raises:
            CorruptionError: something else stands there.
        """
        value = self.find(key)
        if value is None:
            return UNREAD
        if value[:1] == RECORD:
            return value[1:]
        if value == TOMBSTONE:
            return None
        raise CorruptionError("no record stands where one should", f"key {key.hex()}")

    async def records(self, start: bytes, end: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """The first records of [start, end), in key order; shards between them are left out.

        Raises:
            DeviceError, CorruptionError: a block cannot be read.
        """
        found: list[tuple[bytes, bytes]] = []
        while True:
            page = await self.page(start, end, count_max)
            for key, value in sorted(page.entries.items()):
                if value[:1] == RECORD:
                    found.append((key, value[1:]))
                elif value != TOMBSTONE:
                    decode_value(value)  # raises unless it is a shard
            if page.horizon is None or len(found) >= count_max:
                return found[:count_max]
            start = page.horizon + b"\0"

    async def scan(self, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        """Records and shards of [start, end) in key order.

        What changes between two pages may or may not be seen; what does not change is seen
        once.

        Raises:
            DeviceError, CorruptionError: a block cannot be read.
        """
        while True:
            page = await self.page(start, end)
            generation = self.generation
            for key in sorted(page.entries):
                value = decode_value(page.entries[key], generation)
                if value is not None:
                    yield key, value
            if page.horizon is None:
                return
            start = page.horizon + b"\0"

    def freeze(self) -> None:
        """Set the memtable aside to be written as a run. Requires: none is set aside."""
        assert self.frozen is None, "one memtable at a time is written out"
        self.frozen = self.memtable
        self.memtable = Memtable()

    def install(self, runs: tuple[Run, ...], *, drop_frozen: bool) -> None:
        """Replace the runs; with `drop_frozen`, the frozen memtable is in them now."""
        self.runs = runs
        if drop_frozen:
            self.frozen = None
        self.generation += 1
