"""Gives wholly dead extents back.

Role: extents in which nothing is live any more are reset and become free. Live data is not
moved; an extent that is partly live keeps its garbage.

Invariants:
    I1. Only extents that `Extents.dead` names are freed: dead in every state a crash could
        leave.

Ordering: record with state FREE and the epoch raised -> flush -> device reset -> discard ->
allocation. A power cut in between leaves a free extent that still holds old bytes; their epoch
tells that they mean nothing.

Not here: counting what is live (applying.py, checkpoint.py).
"""

from __future__ import annotations

import trio

from shardfs.engine.commit import Committer
from shardfs.engine.extents import Extents
from shardfs.engine.scheduler import Scheduler

_FREED_AT_ONCE = 256


async def reclaim_dead(extents: Extents, committer: Committer, scheduler: Scheduler) -> int:
    """Free every dead extent, some after some.

    Returns:
        How many were freed.

    Durable when: returned.

    Raises:
        DeviceError, ReadOnlyError: extents not yet released stay unused until the next open.
    """
    freed = 0
    while True:
        dead = extents.dead(
            committer.durable_number,
            committer.persistent_checkpoint,
            committer.root.log_extent,
            count_max=_FREED_AT_ONCE,
        )
        if not dead:
            return freed
        with trio.CancelScope(shield=True):
            # A cancellation half-way would lose the extents until the next open.
            for extent in dead:
                extents.mark_free(extent)
            await scheduler.settle(await committer.write_record())
            for extent in dead:
                await extents.release(extent)
        freed += len(dead)
        if len(dead) < _FREED_AT_ONCE:
            return freed  # what has died meanwhile is for the next call
