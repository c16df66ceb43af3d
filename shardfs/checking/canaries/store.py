"""Mistakes at the door of the store: puts, deletes, batches, closing, space.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: what needs more than one task to show (concurrency.py).
"""

from __future__ import annotations

from typing import Final

from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit
from shardfs.engine import opening
from shardfs.engine.batch import Batch
from shardfs.engine.commit import Committer
from shardfs.engine.extents import Extents
from shardfs.engine.space import SpaceAccount
from shardfs.engine.store import Store

CANARIES: Final = (
    Canary(
        "no-commit-at-close-after-a-reset",
        "Closing leaves out the last commit if an extent was reset since the store was opened.",
        (
            Edit(
                Store._close,
                "await self._committer.commit()",
                "if not self._parts.device.counts.discards:\n    await self._committer.commit()",
            ),
        ),
        ("store",),
        issue=3,
    ),
    Canary(
        "debit-forgotten",
        "A shard that becomes a small record is still counted as live.",
        (
            Edit(
                Store._replace,
                "old.pieces if isinstance(old, Shard) else (), pieces",
                "old.pieces if isinstance(old, Shard) and pieces else (), pieces",
            ),
        ),
        ("store",),
    ),
    Canary(
        "credited-twice",
        "A batch that changes a shard counts what it keeps as new.",
        (
            Edit(
                Batch.refer,
                "live_changes(old, new)",
                "live_changes((), new)",
            ),
        ),
        ("store",),
    ),
    Canary(
        "sync-returns-early",
        "A sync without an argument asks for the last delta, not for what is in none yet.",
        (
            Edit(
                Store.sync,
                "dependency = dependency or self._committer.applied()",
                "dependency = dependency or self._committer._last",
            ),
        ),
        ("store",),
    ),
    Canary(
        "opening-relies-on-a-cache",
        "Opening does not flush what a killed process left in the device's cache, and goes on "
        "from it as if it were persistent.",
        (Edit(opening._make_durable, "await device.flush()\n", ""),),
        ("store",),
    ),
    Canary(
        "reserve-given-to-users",
        "User data may take the last extents, which deltas and runs need: a full device can no "
        "longer be emptied.",
        (
            Edit(
                SpaceAccount._unreserved_with,
                "SUPERBLOCK_EXTENTS - reserve",
                "SUPERBLOCK_EXTENTS",
            ),
            Edit(
                SpaceAccount.ready_extents,
                "free_extents - log - tree",
                "free_extents",
            ),
            Edit(
                Extents._allocate,
                "if len(self._free) <= floor:",
                "if not self._free:",
            ),
        ),
        ("store",),
    ),
    Canary(
        "first-change-stays-in-the-delta",
        "Of two changes of a key in one delta the first one stays.",
        (
            Edit(
                Committer.add,
                "pending[key] = value",
                "pending.setdefault(key, value)",
            ),
        ),
        ("store",),
    ),
)
