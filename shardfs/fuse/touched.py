"""Access times that reads have moved, before the store has them.

Role: a change of its own for each file that is read costs as much as the read. So a new access
time is put into the cached inode at once, where everybody sees it, and given to the store some
seconds later, many in one batch, or with the next change of the inode, whichever comes first.

Invariants:
    I1. An inode is in here while its access time, as seen, is not in the store.
    I2. At most TOUCHED_MAX are; after DIRTY_AGE_S the flusher writes them all, as it does data.
    I3. A touched inode that has left the cache gets its time again when it is loaded.

Not here: which reads move the time (access_times.py), who writes them (tables.py).
"""

from __future__ import annotations

from typing import Final

import trio

from shardfs import limits
from shardfs.fuse.records import Inode

TOUCHED_MAX: Final = 4 * limits.KIB


class Touched:
    """The access times of one mount that the store does not have."""

    def __init__(self) -> None:
        self.times_ns: dict[int, int] = {}
        """Inode -> its access time. For those who only look, at each change."""
        self._since = 0.0

    def __contains__(self, ino: int) -> bool:
        return ino in self.times_ns

    @property
    def is_full(self) -> bool:
        """No more may be added (I2)."""
        return len(self.times_ns) >= TOUCHED_MAX

    @property
    def is_old(self) -> bool:
        """The oldest should be given to the store now."""
        return bool(self.times_ns) and trio.current_time() >= self._since + limits.DIRTY_AGE_S

    def inos(self) -> list[int]:
        """All of them, the longest in here first."""
        return list(self.times_ns)

    def add(self, ino: int, atime_ns: int) -> None:
        """The inode was read, and the store is not told."""
        if not self.times_ns:
            self._since = trio.current_time()
        self.times_ns[ino] = atime_ns

    def drop(self, ino: int) -> None:
        """The store has the inode as it is."""
        self.times_ns.pop(ino, None)

    def amended(self, ino: int, inode: Inode) -> Inode:
        """An inode as the store has it, with its time (I3)."""
        atime_ns = self.times_ns.get(ino)
        return inode if atime_ns is None else inode._replace(atime_ns=atime_ns)
