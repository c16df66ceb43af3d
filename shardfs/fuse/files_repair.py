"""Makes names, inodes and shards fit together again, losing none that still says anything.

Role: the file system's part of `shardfs fsck --repair`. Reads every record, and changes what breaks
an F of fuse/fsck.py, by ordinary batches.

Invariants:
    I1. Each batch leaves the file system no worse than it was: a file loses a name only when it has
        another, or will be put into /lost+found by the same repair or the next one.
    I2. Data is never given up for the sake of a count: sizes and counts are made to fit it.
    I3. Repeating it changes nothing more.

Memory: some words for each inode.

Not here: the engine's structures (engine/damage.py, engine/rebuilding.py), asking the user.
"""

from __future__ import annotations

from shardfs.fuse.door import StoreDoor
from shardfs.fuse.inodes_repair import InodesRepair
from shardfs.fuse.names_repair import NamesRepair
from shardfs.fuse.records import NamedInode
from shardfs.fuse.repair_changes import Changes, Recall, Tell


def _nothing(_: int) -> NamedInode | None:
    return None


async def repair_files(store: StoreDoor, tell: Tell, recall: Recall = _nothing) -> None:
    """Repair the files in a store.

    Args:
        store: nobody else changes it.
        tell: hears of each thing that is done.
        recall: what is known of inodes that the tree has lost.

    Durable when: returned.

    Raises:
        NoSpaceError, ReadOnlyError, DeviceError, CorruptionError: it is repaired in part.
    """
    changes = Changes(store, tell, recall)
    await InodesRepair(changes).run()
    await NamesRepair(changes).run()
