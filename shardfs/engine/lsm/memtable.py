"""The newest entries of the tree, in memory.

Role: a dictionary for point look-ups and changes; the sorted order follows behind, some keys at a
time: together they cost less than each alone, and never so much as to hold others up.

Invariants:
    I1. `bytes_held` is the sum over entries of key and value lengths and a fixed overhead.
    I2. At most _UNSORTED_MAX keys are not in order yet.

Not here: making its content durable (commit.py) and turning it into a run (compaction.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedList

_ENTRY_OVERHEAD_BYTES = 160
_RUN_OVERHEAD_BYTES = 8
"""Lengths, filter and a share of the index, for each entry of a run."""
_UNSORTED_MAX = 64
"""Sorting so many in takes a tenth of a millisecond, of which each pays a microsecond or two."""


class Memtable:
    """Entries by key; values are encoded, tombstones included."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.bytes_held = 0
        self.run_bytes = 0
        """About what the entries take as a run, tombstones included."""
        self._sorted: SortedList[bytes] = SortedList()
        self._unsorted: list[bytes] = []

    def __len__(self) -> int:
        return len(self.entries)

    def set(self, key: bytes, value: bytes) -> None:
        """Insert or replace one entry."""
        self.update({key: value})

    def update(self, changes: dict[bytes, bytes]) -> None:
        """Insert or replace entries."""
        entries = self.entries
        grown = added = 0
        for key, value in changes.items():
            old = entries.get(key)
            entries[key] = value
            if old is None:
                self._unsorted.append(key)
                added += 1
                grown += len(key) + len(value)
            else:
                grown += len(value) - len(old)
        self.bytes_held += grown + added * _ENTRY_OVERHEAD_BYTES
        self.run_bytes += grown + added * _RUN_OVERHEAD_BYTES
        if len(self._unsorted) >= _UNSORTED_MAX:
            self._sort_in()

    def get(self, key: bytes) -> bytes | None:
        """The encoded value, or None when the key is not here."""
        return self.entries.get(key)

    def range(self, start: bytes, end: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """At most `count_max` entries from [start, end), in order."""
        self._sort_in()
        result = []
        for key in self._sorted.irange(start, end, (True, False)):
            result.append((key, self.entries[key]))
            if len(result) == count_max:
                break
        return result

    def ordered(self) -> Iterator[bytes]:
        """All keys, in order. Requires: no key is added before the last has been taken."""
        self._sort_in()
        return iter(self._sorted)

    def forget(self, count: int) -> bool:
        """Let go of so many entries; False if there are none. Requires: it is of no more use.

        Letting go of all at once would hold others up for some milliseconds.
        """
        for _ in range(min(count, len(self.entries))):
            self.entries.popitem()
        for _ in range(min(count, len(self._sorted))):
            self._sorted.pop()
        return bool(self.entries or self._sorted)

    def _sort_in(self) -> None:
        if self._unsorted:
            self._sorted.update(self._unsorted)
            self._unsorted = []
