"""One bound for the memory of a mount, and how it is shared out.

Role: knows what everything holds that grows with use, in bytes, and gives the caches what the rest
leaves of the bound (`-o cache=SIZE`).

What the program is by itself and what cannot be smaller comes first: the memtables, the index and
the filter of each run, the state of each extent, the count of lookups for each inode that the
kernel knows, names that wait for their second copy. Then comes the room for buffered data and for
requests being served. The caches share what is left: tree blocks, decoded shards, inodes, entries.
So they shrink as the store grows, and nothing is refused for want of memory.

Invariants:
    I1. What the caches may hold, with all else, is at most the bound, or `limits.CACHES_BYTES_MIN`
        if that is more.
    I2. Sizes are what Python allocates, not what is encoded, and on the high side.

Not here: keeping a cache within its share (engine/cache.py, tables.py), waiting of writers
(flusher.py), memory that is free and kept (cli/heap.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import trio

from shardfs import limits
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.handles import Handles
from shardfs.fuse.listing import RecentPages
from shardfs.fuse.name_pages import NamePages
from shardfs.fuse.tables import Tables
from shardfs.fuse.writeback import Writeback

CACHES: Final = ("blocks", "decoded", "inodes", "entries")
"""What of `use` shrinks when the memory is wanted for something else."""
_SHARED_OUT_EVERY_S: Final = 1.0
_STORE_SHARE: Final = 0.5
_INODES_SHARE: Final = 0.25
_ENTRIES_SHARE: Final = 0.25
_STATM: Final = Path("/proc/self/statm")


class Memory:
    """The memory of one mount.

    Args:
        bytes_max: the bound.
        dirty_bytes_max: of it, for buffered data.
    """

    def __init__(
        self,
        store: StoreDoor,
        tables: Tables,
        writeback: Writeback,
        handles: Handles,
        name_pages: NamePages,
        recent_pages: RecentPages,
        *,
        bytes_max: int,
        dirty_bytes_max: int,
    ) -> None:
        self.bytes_max = bytes_max
        self._store = store
        self._tables = tables
        self._writeback = writeback
        self._handles = handles
        self._name_pages = name_pages
        self._recent_pages = recent_pages
        self._dirty_bytes_max = dirty_bytes_max
        self.caches_bytes_max = limits.CACHES_BYTES_MIN
        """What the caches may hold now."""
        self.program_bytes = 0
        """What the process takes besides what is counted, as `run` begins."""

    def use(self) -> dict[str, int]:
        """Bytes held now, by what for."""
        return {
            "program": self.program_bytes,
            **self._store.memory_use(),
            "dirty": self._writeback.dirty_bytes,
            "inodes": self._tables.inode_bytes,
            "entries": self._tables.entry_bytes,
            "known_to_kernel": self._handles.memory_bytes,
            "listed": self._recent_pages.memory_bytes,
            "names_waiting": self._name_pages.memory_bytes,
        }

    @property
    def caches_bytes(self) -> int:
        """What the caches hold now."""
        use = self.use()
        return sum(use[name] for name in CACHES)

    def share_out(self) -> None:
        """Let the caches have what the rest leaves."""
        flexible = (*CACHES, "dirty")
        fixed = sum(held for name, held in self.use().items() if name not in flexible)
        room = self.bytes_max - fixed - self._dirty_bytes_max - limits.REQUEST_MEMORY_BYTES
        self.caches_bytes_max = room = max(room, limits.CACHES_BYTES_MIN)
        self._store.limit_caches(int(room * _STORE_SHARE))
        self._tables.limit(int(room * _INODES_SHARE), int(room * _ENTRIES_SHARE))

    async def run(self) -> None:
        """Share out, and anew as things grow; for ever."""
        self.program_bytes = max(0, resident_bytes() - sum(self.use().values()))
        while True:
            self.share_out()
            await trio.sleep(_SHARED_OUT_EVERY_S)


def dirty_share(wanted_bytes: int, bytes_max: int) -> int:
    """How much buffered data may take of a bound: what is wanted, a quarter of it at most."""
    return min(wanted_bytes, bytes_max // 4)


def resident_bytes() -> int:
    """What this process takes of the machine's memory."""
    pages = int(_STATM.read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
