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
from collections.abc import AsyncIterator

from shardfs.engine.lsm.entry import TOMBSTONE, decode_value, encode_shard
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.lsm.merge import Page, Run, load_page, merge_parts, overlapping
from shardfs.engine.pieces import Shard
from shardfs.errors import CorruptionError

_PAGE_ENTRIES = 256
_ABSENT_KEYS_MAX = 4096
"""Keys remembered as looked up and not found; who makes a shard does so right after looking."""


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

    def find(self, key: bytes) -> bytes | None:
        """The encoded value, TOMBSTONE if there is none, or None if a block has to be read to know.

        What `get` does without waiting.
        """
        value = self.in_memory(key)
        if value is not None:
            return value
        for segment in overlapping(self.runs, key):
            if segment.may_contain(key):
                block = segment.cached_block(key)
                if block is None:
                    return None
                at = bisect_left(block.keys, key)
                if at < len(block.keys) and block.keys[at] == key:
                    value = block.values[at]
                    break
                value = TOMBSTONE  # unless an older run has it
        else:
            if value is None:
                return TOMBSTONE  # as the filters alone say
        if value == TOMBSTONE:
            self._note_absent(key)
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
                for segment in overlapping(self.runs, key):
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
        return not any(segment.may_contain(key) for segment in overlapping(self.runs, key))

    def _note_absent(self, key: bytes) -> None:
        self._absent.pop(key, None)
        self._absent[key] = self.generation
        if len(self._absent) > _ABSENT_KEYS_MAX:
            del self._absent[next(iter(self._absent))]

    async def page(self, start: bytes, end: bytes) -> Page:
        """The tree's entries from `start`, tombstones included, as of one moment (I3).

        Raises:
            DeviceError, CorruptionError: a block cannot be read.
        """
        while True:
            generation = self.generation
            try:
                stored = await load_page(self.runs, start, end, _PAGE_ENTRIES)
            except CorruptionError:
                if generation == self.generation:
                    raise
                continue
            if generation == self.generation:
                return self._with_memory(stored, start, end)

    def _with_memory(self, stored: Page, start: bytes, end: bytes) -> Page:
        pairs = sorted(stored.entries.items())
        if stored.horizon is not None and not pairs:
            pairs = [(stored.horizon, TOMBSTONE)]
        parts = [(pairs, stored.horizon is None)]
        for table in (self.frozen, self.memtable):
            if table is not None:
                entries = table.range(start, end, _PAGE_ENTRIES)
                parts.append((entries, len(entries) < _PAGE_ENTRIES))
        return merge_parts(parts)

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
