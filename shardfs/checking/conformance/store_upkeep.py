"""Operations of the world of stores that make durable, merge, reclaim, or let time pass.

Role: one small async function for each. To the model most of them do nothing.

Not here: reading and writing (store_steps.py), what must hold afterwards (store_system.py).
"""

from __future__ import annotations

import trio

from shardfs.checking.conformance import sizes
from shardfs.checking.conformance.store_system import StoreSystem
from shardfs.engine.dependency import Dependency
from shardfs.engine.layout import Stream
from shardfs.errors import NoSpaceError


async def sync(system: StoreSystem) -> None:
    """Everything applied becomes persistent."""
    applied_count = system.model.applied_count
    await system.store.sync()
    system.model.persist(applied_count)


async def sync_one(system: StoreSystem, back: int) -> None:
    """One promise is kept, and with it all before it."""
    promises = system.model.promises
    if promises:
        promise = promises[-1 - back % len(promises)]
        assert isinstance(promise, Dependency), "the store gives no other promises"
        await system.store.sync(promise)
        assert promise.is_persistent(), "a sync has returned and its dependency is pending"
        system.model.ask_promises()


async def write_out(system: StoreSystem) -> None:
    """What can be written is written, without a flush."""
    await system.store._scheduler.write_out()


async def flush(system: StoreSystem) -> None:
    """What was written is persistent; nothing is committed."""
    await system.store._scheduler.flush()


async def commit(system: StoreSystem) -> None:
    """Every change is in a delta, and the delta is persistent."""
    applied_count = system.model.applied_count
    await system.store._committer.commit()
    system.model.persist(applied_count)


async def checkpoint(system: StoreSystem) -> None:
    """The memtable becomes a run; on a full device, too, for that is what the reserve is for."""
    applied_count = system.model.applied_count
    try:
        await system.store.checkpoint()
    except NoSpaceError as error:
        raise AssertionError(f"no room for a checkpoint: {system.store.space()}") from error
    system.model.persist(applied_count)


async def compact(system: StoreSystem) -> None:
    """Runs are merged."""
    await system.store.compact()


async def reclaim(system: StoreSystem) -> None:
    """Dead extents become free; if there is none, what is live is moved out of some."""
    await system.store.reclaim()


async def reclaim_dead(system: StoreSystem) -> None:
    """Dead extents become free; nothing is moved."""
    await system.store.reclaim_dead()


async def tidy(system: StoreSystem) -> None:
    """What an idle store does by and by."""
    await checkpoint(system)
    # What is freed may be the room that the next merge needs.
    while (
        await system.store._checkpointer.compact(garbage_share_max=0.0)
        or await system.store.reclaim()
    ):
        pass


async def empty_extent(system: StoreSystem, which: int) -> None:
    """What the tree has in one of its extents is written again, elsewhere."""
    runs = [each.index for each in system.store._extents.all if each.stream is Stream.RUNS]
    if runs:
        await system.store._checkpointer.empty(runs[which % len(runs)])


async def reserve(system: StoreSystem, length: int) -> None:
    """Space is set aside, and given back."""
    store = system.store
    before = store.space().free_bytes
    with system.room(b"", length):
        store.reserve(length)
    after = store.space()
    assert after.free_bytes == before - length, f"{before} - {length} is {after.free_bytes} free"
    assert after.reserved_bytes == length
    store.release(length)
    assert store.space().free_bytes == before


async def gather(system: StoreSystem) -> None:
    """A scattered shard is rewritten in fewer pieces."""
    if await system.store.gather():
        system.coverage.counts["gathered"] += 1


async def wait(system: StoreSystem, tenths: int) -> None:
    """Time passes, for what is done in the background."""
    await trio.sleep(min(tenths, 100) / 10)


async def trim(system: StoreSystem) -> None:
    """The device is told of everything that is free."""
    await sizes.trim(system.store, quiet=not system.settings.background)


async def grow(system: StoreSystem, steps: int) -> None:
    """The device becomes larger, or its image file, and then the store."""
    await system.sizes.grow(system.store, system.device, steps)


async def shrink(system: StoreSystem, extents: int, steps: int) -> None:
    """The store becomes smaller, in so many steps; what is left of it goes on when asked again."""
    await system.sizes.shrink(system.store, extents, steps)


async def stop_shrink(system: StoreSystem) -> None:
    """A shrink that is under way is given up."""
    system.sizes.stop(system.store)
