"""How a store is to be opened.

Role: the choices that whoever opens a store has, with their defaults.

Not here: what was chosen when it was formatted (superblock_record.py), options of a mount (fuse/).
"""

from __future__ import annotations

from dataclasses import dataclass

from shardfs import limits


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to open a store.

    Args:
        read_only: nothing is written, not even by recovery.
        background: run commits, checkpoints, merges and reclamation by themselves; without it
            the caller runs them (tests that need every step to be theirs).
        cache_bytes: bound of the buffer cache.
        commit_interval_s: applied batches are durable after about this long.
    """

    read_only: bool = False
    background: bool = True
    cache_bytes: int = limits.CACHE_BYTES_DEFAULT
    commit_interval_s: float = limits.COMMIT_INTERVAL_S
    tolerant: bool = False
    """With read_only: open a store of which parts of the tree, or the end of the device, are lost.
    What was there cannot be read then; nothing older is given in its place."""
