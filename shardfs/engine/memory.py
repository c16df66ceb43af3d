"""What an open store holds in memory, and its caches' bound.

Role: counts bytes by what they are for; sets how much the two caches may take together. What they
do not know exactly is estimated from what Python was seen to allocate.

Not here: the bound itself (StoreOptions, fuse/memory.py).
"""

from __future__ import annotations

from typing import Final

from shardfs.engine.opening import Parts
from shardfs.engine.recent_shards import RecentShards

_EXTENT_BYTES: Final = 350
_BLOCK_REFERENCE_BYTES: Final = 480
_DECODED_SHARE: Final = 4
"""Of the caches: a gigabyte that was overwritten at random is 15 MiB of decoded shards, and reading
it at random with less room decodes a hundred pieces for each read."""


class StoreMemory:
    """The memory of one store.

    Args:
        recent: the cache of decoded shards.
    """

    def __init__(self, parts: Parts, recent: RecentShards) -> None:
        self._parts = parts
        self._recent = recent

    def use(self) -> dict[str, int]:
        """Bytes held now, by what for."""
        parts = self._parts
        frozen = parts.tree.frozen
        indexes = sum(
            segment.index.filter.memory_bytes + _BLOCK_REFERENCE_BYTES * len(segment.index.blocks)
            for run in parts.tree.runs
            for segment in run.segments
        )
        return {
            "blocks": parts.cache.held_bytes,
            "decoded": self._recent.held_bytes,
            "indexes": indexes,
            "memtables": parts.tree.memtable.bytes_held + (frozen.bytes_held if frozen else 0),
            "extents": _EXTENT_BYTES * len(parts.extents.all),
            "queued": parts.scheduler.queued_bytes,
        }

    def limit(self, bytes_max: int) -> None:
        """The caches may take so much together from now on."""
        decoded = bytes_max // _DECODED_SHARE
        self._recent.limit(decoded)
        self._parts.cache.limit(bytes_max - decoded)
