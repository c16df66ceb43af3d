"""What each operation of a store's sequences does, to the system and to its model.

Role: one small async function for each letter of the alphabet, simple to complex. Numbers that
mean nothing at their place are brought into bounds, or the operation does nothing.

Not here: how often and in which order operations come (store_world.py), crashes (store_system.py).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable, Callable

import trio

from shardfs import limits
from shardfs.checking.conformance.case import Operation
from shardfs.checking.conformance.store_faults import FAULTS
from shardfs.checking.conformance.store_system import (
    KEYS,
    PLAIN_KEYS,
    RECORD_KEYS,
    SHARD_KEYS,
    Action,
    StoreSystem,
)
from shardfs.checking.models.key_value_model import Changes
from shardfs.engine.pieces import Piece, Shard, overlapped, splice
from shardfs.errors import NoSpaceError, StaleError, UsageError

VALUE_BYTES_MAX = 160 * limits.KIB
RECORD_BYTES_MAX = 8 * limits.KIB
CRASHES = ("lose", "keep", "kill", "scatter", "tear")
_ROUNDS_TO_TIDY_UP = 3
_FILL_BYTES = 16 * limits.KIB - 256
_CHURN_BYTES = 60 * limits.KIB
_HOLE_BYTES_MAX = 6 * limits.KIB
_SCATTERED_BYTES_MAX = 1 * limits.KIB
_ATTEMPTS_MAX = 20


# --- reading and writing ------------------------------------------------------------------------


async def get(system: StoreSystem, key: int) -> None:
    """A whole value."""
    name = KEYS[key % len(KEYS)]
    system.expect(name, await system.store.get(name))


async def put(system: StoreSystem, key: int, size: int) -> None:
    """A value through the key-value door."""
    name = PLAIN_KEYS[key % len(PLAIN_KEYS)]
    value = system.value(min(size, VALUE_BYTES_MAX))
    with system.model.applying({name: value}) as applied:
        applied.promise = await system.store.put(name, value)


async def delete(system: StoreSystem, key: int) -> None:
    """A key goes, or was not there."""
    name = KEYS[key % len(KEYS)]
    with system.model.applying({name: None}) as applied:
        applied.promise = await system.store.delete(name)


async def overwrite(system: StoreSystem, which: int, size: int) -> None:
    """Another value for one of the keys that have one."""
    present = [number for number, key in enumerate(PLAIN_KEYS) if key in system.model.content]
    if present:
        await put(system, present[which % len(present)], size)


async def part(system: StoreSystem, key: int, start: int, length: int) -> None:
    """Some bytes of a value."""
    name = KEYS[key % len(KEYS)]
    found = await system.store.get(name, start, length)
    expected = system.model.get(name, start, length)
    assert name in system.unread or found == expected, (
        f"bytes [{start}, {start + length}) of {name!r} are others"
    )


async def scan(system: StoreSystem) -> None:
    """Every key."""
    await scan_part(system, 0, len(KEYS))


async def scan_part(system: StoreSystem, first: int, count: int) -> None:
    """Keys and values of a range."""
    keys = sorted(KEYS)
    start = keys[first % len(keys)]
    after = first % len(keys) + count
    end = keys[after] if after < len(keys) else b"\xff"
    found = [entry async for entry in system.store.scan(start, end)]
    present = {key for key, _ in found} - system.unread
    expected = {key for key, _ in system.model.scan(start, end)} - system.unread
    assert present == expected, f"a scan finds {sorted(present ^ expected)} too many or not"
    for key, value in found:
        if isinstance(value, Shard):
            system.expect(key, await system.store.read_shard(value, 0, value.length))
        else:
            system.expect(key, value)


async def batch(system: StoreSystem, first: int, records: int, shards: int, size: int) -> None:
    """Several keys at once: records and shards set, the ones behind them removed."""
    store = system.store
    changes: dict[bytes, bytes | None] = {}
    for number in range(min(records, len(RECORD_KEYS) - 1)):
        key = RECORD_KEYS[(first + number) % len(RECORD_KEYS)]
        changes[key] = system.value(min(size, RECORD_BYTES_MAX))
    for number in range(min(shards, len(SHARD_KEYS) - 1)):
        key = SHARD_KEYS[(first + number) % len(SHARD_KEYS)]
        # An empty shard is one of holes, and has no length.
        changes[key] = system.value(min(max(size, 1), VALUE_BYTES_MAX // 4))
    changes[RECORD_KEYS[(first + records) % len(RECORD_KEYS)]] = None
    changes[SHARD_KEYS[(first + shards) % len(SHARD_KEYS)]] = None

    async def attempt() -> None:
        bases = {key: await store.get_shard(key) for key in changes if key in SHARD_KEYS}
        _apply(system, changes, bases)

    await store.admit()
    await _while_stale(attempt)


async def _while_stale(attempt: Callable[[], Awaitable[None]]) -> None:
    """Try again when runs were replaced between the look at a shard and the batch: whether it is
    still the same cannot be told then without another look (Store.apply)."""
    for _ in range(_ATTEMPTS_MAX):
        try:
            return await attempt()
        except StaleError:
            await trio.lowlevel.checkpoint()
    raise AssertionError("what was read a moment ago has always changed")


def _apply(system: StoreSystem, changes: Changes, bases: dict[bytes, Shard | None]) -> None:
    store = system.store
    with system.model.applying(changes) as applied:
        batch = store.batch()
        for key, value in changes.items():
            base = bases.get(key)
            if key in RECORD_KEYS:
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            elif value is not None:
                batch.put_shard(key, store.append_pieces(key, 0, (value,)), base)
            elif base is not None:
                batch.delete_shard(key, base)
        applied.promise = store.apply(batch)


async def patch(system: StoreSystem, key: int, start: int, size: int) -> None:
    """Some bytes of a shard are written anew, or added at its end or somewhat behind it."""
    store = system.store
    name = SHARD_KEYS[key % len(SHARD_KEYS)]
    old = system.model.get(name)
    if old is None or name in system.unread:
        return
    start = min(start, len(old) + _HOLE_BYTES_MAX)
    data = system.value(min(max(size, 1), VALUE_BYTES_MAX // 4))
    changes = {name: old[:start].ljust(start, b"\0") + data + old[start + len(data) :]}

    async def attempt() -> None:
        base = await store.get_shard(name)
        if base is None:
            assert system.bytes_were_lost, f"{name!r} is gone"
            return
        with system.model.applying(changes) as applied:
            pieces = base.pieces
            replaced = overlapped(pieces, start, len(data))
            for piece in store.append_pieces(name, start, (data,), replaced=replaced):
                pieces = splice(pieces, piece.start, piece.locator, piece.length)
            batch = store.batch()
            batch.put_shard(name, pieces, base)
            applied.promise = store.apply(batch)

    await store.admit()
    await _while_stale(attempt)


async def scatter(system: StoreSystem, key: int, pieces: int, size: int) -> None:
    """A shard in many small pieces, the even ones written before the odd ones."""
    store = system.store
    name = SHARD_KEYS[key % len(SHARD_KEYS)]
    parts = [system.value(1 + size % _SCATTERED_BYTES_MAX) for _ in range(1 + pieces % 40)]
    changes: Changes = {name: b"".join(parts)}
    starts = list(itertools.accumulate((len(part) for part in parts), initial=0))

    async def attempt() -> None:
        base = await store.get_shard(name)
        with system.model.applying(changes) as applied:
            written: tuple[Piece, ...] = ()
            for number in (*range(0, len(parts), 2), *range(1, len(parts), 2)):
                for piece in store.append_pieces(name, starts[number], (parts[number],)):
                    written = splice(written, piece.start, piece.locator, piece.length)
            batch = store.batch()
            batch.put_shard(name, written, base)
            applied.promise = store.apply(batch)

    await store.admit()
    await _while_stale(attempt)


async def fill(system: StoreSystem, count: int) -> None:
    """Many values, to bring the device to its end or near it."""
    for number in range(min(count, 128)):
        name = b"f%d" % number
        value = system.value(_FILL_BYTES)
        with system.model.applying({name: value}) as applied:
            applied.promise = await system.store.put(name, value)


async def empty(system: StoreSystem) -> None:
    """Every key goes; then there is room again."""
    store = system.store
    for name in sorted(system.model.content):
        with system.model.applying({name: None}) as applied:
            applied.promise = await store.delete(name)
    for rounds_left in reversed(range(_ROUNDS_TO_TIDY_UP)):
        await checkpoint(system)
        while await store.compact():
            pass
        while await store.reclaim():
            pass
        try:
            await put(system, 0, _FILL_BYTES)
            return
        except NoSpaceError as error:
            if system.device.faults.struck:
                # An extent that could not be reset stays unused until the next opening.
                raise
            if not rounds_left:
                raise AssertionError(f"an emptied store has no room: {store.space()}") from error


# --- durability and upkeep ----------------------------------------------------------------------


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
        await system.store.sync(promise)  # type: ignore[arg-type]
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
    """Dead extents become free."""
    await system.store.reclaim()


async def gather(system: StoreSystem) -> None:
    """A scattered shard is rewritten in fewer pieces."""
    if await system.store.gather():
        system.coverage.counts["gathered"] += 1


async def wait(system: StoreSystem, tenths: int) -> None:
    """Time passes, for what is done in the background."""
    await trio.sleep(min(tenths, 100) / 10)


async def churn(system: StoreSystem, rounds: int, every: int, records: int) -> None:
    """One large value after the other, until extents that were freed are used again; with a
    checkpoint every so many rounds (0: none), so that extents of runs are, too."""
    for number in range(min(rounds, 64)):
        value = system.value(_CHURN_BYTES)
        key = PLAIN_KEYS[number % 2]
        with system.model.applying({key: value}) as applied:
            applied.promise = await system.store.put(key, value)
        if records:
            await batch(system, number, min(records, 5), 0, RECORD_BYTES_MAX)
        await sync(system)
        if every and number % every == 0:
            await checkpoint(system)
            await system.store.compact()
        if number % 2:
            await system.store.reclaim()


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
    empty,
    sync,
    sync_one,
    write_out,
    flush,
    commit,
    checkpoint,
    compact,
    reclaim,
    gather,
    wait,
    churn,
    reboot,
    crash,
    cut,
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
