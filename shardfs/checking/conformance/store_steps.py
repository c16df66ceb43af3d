"""Operations of the world of stores that read and change one thing, on the system and its model.

Role: one small async function for each. Numbers that mean nothing at their place are brought into
bounds, or the operation does nothing.

Not here: what is done to many keys (store_operations.py), upkeep (store_upkeep.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import trio

from shardfs import limits
from shardfs.checking.conformance.store_system import (
    KEYS,
    PLAIN_KEYS,
    RECORD_KEYS,
    SHARD_KEYS,
    StoreSystem,
)
from shardfs.checking.models.key_value_model import Changes
from shardfs.engine.pieces import Piece, Shard, overlapped, splice
from shardfs.errors import StaleError

VALUE_BYTES_MAX = 160 * limits.KIB
RECORD_BYTES_MAX = 8 * limits.KIB
_SCATTERED_BYTES_MAX = 1 * limits.KIB
_HOLE_BYTES_MAX = 6 * limits.KIB
_ATTEMPTS_MAX = 20


async def get(system: StoreSystem, key: int) -> None:
    """A whole value."""
    name = KEYS[key % len(KEYS)]
    system.expect(name, await system.store.get(name))


async def put(system: StoreSystem, key: int, size: int) -> None:
    """A value through the key-value door."""
    name = PLAIN_KEYS[key % len(PLAIN_KEYS)]
    await put_value(system, name, system.value(min(size, VALUE_BYTES_MAX)))


async def put_value(system: StoreSystem, name: bytes, value: bytes) -> None:
    """This value through the key-value door."""
    wanted = len(value) if len(value) > limits.INLINE_VALUE_BYTES_MAX else 0
    with system.room(name, wanted), system.model.applying({name: value}) as applied:
        applied.promise = await system.store.put(name, value)


async def delete(system: StoreSystem, key: int) -> None:
    """A key goes, or was not there."""
    await delete_key(system, KEYS[key % len(KEYS)])


async def delete_key(system: StoreSystem, name: bytes) -> None:
    """This key goes."""
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
    wanted = sum(len(value or b"") for key, value in changes.items() if key in SHARD_KEYS)
    changes[RECORD_KEYS[(first + records) % len(RECORD_KEYS)]] = None
    changes[SHARD_KEYS[(first + shards) % len(SHARD_KEYS)]] = None

    async def attempt() -> None:
        bases = {key: await store.get_shard(key) for key in changes if key in SHARD_KEYS}
        _apply(system, changes, bases)

    with system.room(b"", wanted):
        await _make_room(system, wanted)
        await _while_stale(attempt)


async def _make_room(system: StoreSystem, wanted: int) -> None:
    """As who keeps a promise does, before it is given."""
    await system.store.admit(wanted)
    system.store.reserve(wanted)
    system.store.release(wanted)


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
    system.space.model.follow(system.model.content)

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
            at_end = start >= len(old)
            system.space.model.patched(name, changes[name], len(data), at_end=at_end)
            applied.promise = store.apply(batch)

    with system.room(name, len(data)):
        await _make_room(system, len(data))
        await _while_stale(attempt)


async def scatter(system: StoreSystem, key: int, pieces: int, size: int) -> None:
    """A shard in many small pieces, the even ones written before the odd ones."""
    store = system.store
    name = SHARD_KEYS[key % len(SHARD_KEYS)]
    parts = [system.value(1 + size % _SCATTERED_BYTES_MAX) for _ in range(1 + pieces % 40)]
    value = b"".join(parts)
    changes: Changes = {name: value}
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
            system.space.model.scattered(name, value, len(parts))
            applied.promise = store.apply(batch)

    with system.room(name, len(value)):
        await _make_room(system, len(value))
        await _while_stale(attempt)
