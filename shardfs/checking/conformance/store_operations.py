"""The alphabet of a store's sequences, and those of its operations that touch many keys.

Role: one small async function for each letter, simple to complex; `action_of` finds it.

Not here: operations on one thing (store_steps.py), upkeep (store_upkeep.py), how often and in
which order operations come (store_world.py), crashes (store_system.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from shardfs import limits
from shardfs.checking.conformance.case import Operation
from shardfs.checking.conformance.store_faults import FAULTS
from shardfs.checking.conformance.store_steps import (
    RECORD_BYTES_MAX,
    batch,
    delete,
    delete_key,
    get,
    overwrite,
    part,
    patch,
    put,
    put_value,
    scan,
    scan_part,
    scatter,
)
from shardfs.checking.conformance.store_system import (
    PLAIN_KEYS,
    RECORD_KEYS,
    Action,
    StoreSystem,
    many_key,
)
from shardfs.checking.conformance.store_upkeep import (
    checkpoint,
    commit,
    compact,
    empty_extent,
    flush,
    gather,
    grow,
    reclaim,
    reclaim_dead,
    reserve,
    shrink,
    stop_shrink,
    sync,
    sync_one,
    tidy,
    trim,
    wait,
    write_out,
)
from shardfs.errors import UsageError

CRASHES = ("lose", "keep", "kill", "scatter", "tear")
_FILL_BYTES = 16 * limits.KIB - 256
_PATCHED_BYTES = 16_000
_SPREAD_BYTES = 7 * limits.KIB
_CHURN_BYTES = 60 * limits.KIB
_PATTERN_BITS = 40
_FREE_EXTENTS_WANTED = 4


async def fill(system: StoreSystem, count: int) -> None:
    """Many values, to bring the device to its end or near it."""
    for number in range(min(count, 128)):
        await put_value(system, many_key(number), system.value(_FILL_BYTES))


async def spread(system: StoreSystem, count: int, kib: int) -> None:
    """Many values, several to an extent; between them some that are replaced again and again, and
    a shard that is written in parts."""
    await batch(system, 0, 0, 1, _PATCHED_BYTES)
    for number in range(min(count, 128)):
        size = 1 + min(kib, 16) * limits.KIB - 7 * number
        await put_value(system, many_key(number), system.value(max(size, 300)))
        if number % 3 == 0:
            await put_value(system, PLAIN_KEYS[number % 2], system.value(_SPREAD_BYTES))
        if number % 8 == 1:
            await patch(system, 0, number * 300, 700)


async def mirror(system: StoreSystem, key: int, extent: int, kib: int) -> None:
    """A value that is a copy of what the device has somewhere, whole frames among it."""
    start = system.store.identity.extent_offset(extent % system.store.identity.extent_count)
    length = min(1 + kib, 32) * limits.KIB
    value = system.value(16) + system.device.image()[start : start + length]
    await put_value(system, PLAIN_KEYS[key % len(PLAIN_KEYS)], value)


async def thin(system: StoreSystem, stay: int, of: int) -> None:
    """Of the many values some go and some stay: extents are live in part."""
    of = max(of, 1)
    names = sorted(name for name in system.model.content if name.startswith(b"f"))
    for number, name in enumerate(names):
        if number % of != stay % of:
            await delete_key(system, name)


async def empty(system: StoreSystem) -> None:
    """Every key goes; then all the room is there again."""
    for name in sorted(system.model.content):
        await delete_key(system, name)
    await tidy(system)
    if not system.bytes_were_lost and not system.device.faults.struck:
        system.space.model.emptied(system.space.figures(), merged=True)
    await put(system, 0, _FILL_BYTES)


async def churn(system: StoreSystem, rounds: int, every: int, records: int) -> None:
    """One large value after the other, until extents that were freed are used again; with a
    checkpoint every so many rounds (0: none), so that extents of runs are, too."""
    for number in range(min(rounds, 64)):
        await put_value(system, PLAIN_KEYS[number % 2], system.value(_CHURN_BYTES))
        if records:
            await batch(system, number, min(records, 5), 0, RECORD_BYTES_MAX)
        await sync(system)
        if every and number % every == 0:
            await checkpoint(system)
            await system.store.compact()
        if number % 2:
            await system.store.reclaim()


async def layers(system: StoreSystem, rounds: int, pattern: int) -> None:
    """A few changes, a checkpoint and some steps of merging, again and again: runs of several
    levels, and merges that begin while others are under way. Of the pattern, two bits each say how
    many changes and how many steps."""
    for number in range(min(rounds, 32)):
        bits = pattern >> number * 4 % _PATTERN_BITS
        await batch(system, number, bits & 3, 0, RECORD_BYTES_MAX // 8)
        await delete_key(system, RECORD_KEYS[bits % len(RECORD_KEYS)])
        await checkpoint(system)
        for _ in range(bits >> 2 & 3):
            await system.store.compact()
            system.check_levels()
        if system.store._extents.free_count <= _FREE_EXTENTS_WANTED:
            await system.store.reclaim()  # as whoever adds to the tree has it done


# --- endings ------------------------------------------------------------------------------------


async def reboot(system: StoreSystem) -> None:
    """A clean close, and an open."""
    system.end("clean")


async def crash(system: StoreSystem, kind: int) -> None:
    """The power fails, or the process is killed."""
    system.end(CRASHES[kind % len(CRASHES)])


async def cut(
    system: StoreSystem, device_operations: int, kind: int, again: int, second: int
) -> None:
    """The power will fail in the middle of something; unless `again` is 0, once more while the
    store recovers from that."""
    system.plan_cut(
        device_operations + 1,
        CRASHES[kind % len(CRASHES)],
        recovery_cut=again,
        recovery_kind=CRASHES[second % len(CRASHES)],
    )


async def cut_resize(system: StoreSystem, device_operations: int, kind: int) -> None:
    """The power will fail when the store is about to have another size."""

    def cut_soon() -> None:
        system.plan_cut(device_operations + 1, CRASHES[kind % len(CRASHES)])

    system.sizes.at_change = cut_soon


async def crash_twice(system: StoreSystem, kind: int, device_operations: int, second: int) -> None:
    """The power fails, and fails again while the store recovers."""
    system.end(
        CRASHES[kind % len(CRASHES)],
        recovery_cut=device_operations + 1,
        recovery_kind=CRASHES[second % len(CRASHES)],
    )


_FUNCTIONS: tuple[Callable[..., Awaitable[None]], ...] = (
    get,
    put,
    delete,
    overwrite,
    part,
    scan,
    scan_part,
    batch,
    patch,
    scatter,
    fill,
    mirror,
    spread,
    thin,
    empty,
    sync,
    sync_one,
    write_out,
    flush,
    commit,
    checkpoint,
    compact,
    reclaim,
    reclaim_dead,
    tidy,
    empty_extent,
    reserve,
    gather,
    wait,
    churn,
    layers,
    trim,
    grow,
    shrink,
    stop_shrink,
    reboot,
    crash,
    cut,
    cut_resize,
    crash_twice,
    *FAULTS,
)
_OPERATIONS = {
    function.__name__.replace("_", "-"): (function, len(inspect.signature(function).parameters) - 1)
    for function in _FUNCTIONS
}
ALPHABET = tuple(_OPERATIONS)
"""Names of the operations, simple to complex."""


def action_of(operation: Operation) -> Action:
    """What an operation does; arguments that are missing are 0.

    Raises:
        UsageError: there is no such operation.
    """
    if operation.name not in _OPERATIONS:
        raise UsageError(f"there is no operation {operation.name!r} in the world of stores")
    function, arity = _OPERATIONS[operation.name]
    arguments = (operation.arguments + (0,) * arity)[:arity]

    async def act(system: StoreSystem) -> None:
        system.coverage.counts[f"operation {operation.name}"] += 1
        await function(system, *arguments)

    return act
