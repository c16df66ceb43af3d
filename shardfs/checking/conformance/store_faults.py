"""Operations of the world of stores that plan a fault of the device.

Role: one function for each fault, with whole numbers that say where and when it strikes.

Not here: what a fault excuses (store_system.py), what the device makes of it (checking/faults.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from shardfs import limits
from shardfs.checking.conformance.store_system import (
    KEYS,
    RECORD_KEYS,
    SHARD_KEYS,
    StoreSystem,
    many_key,
)

_ALL_LIFE = 1 << 30


async def fail_read(system: StoreSystem, skip: int) -> None:
    """One read will fail."""
    system.device.fail("read", skip=skip)


async def fail_region(system: StoreSystem, extent: int) -> None:
    """An extent cannot be read for the rest of this life."""
    system.device.fail("read", *_extent(system, extent), times=_ALL_LIFE)


async def fail_open(system: StoreSystem, skip: int) -> None:
    """One read of the next opening will fail."""
    system.reads_to_fail = skip


async def flip_read(system: StoreSystem, skip: int) -> None:
    """One read will return a wrong bit."""
    system.device.faults.flip_read(skip=skip)


async def fail_write(system: StoreSystem, skip: int) -> None:
    """One write will fail."""
    system.device.fail("write", skip=skip)


async def fail_flush(system: StoreSystem, skip: int) -> None:
    """One flush will fail, and with it all later ones."""
    system.device.fail("flush", skip=skip)


async def fail_reset(system: StoreSystem, skip: int) -> None:
    """One reset of a zone will fail."""
    system.device.fail("reset", skip=skip)


async def vanish(system: StoreSystem, skip: int, requests: int) -> None:
    """The device goes away, for some requests or for good."""
    system.device.faults.vanish(skip, times=requests or None)


async def rot(system: StoreSystem, key: int, offset: int) -> None:
    """A byte of the data of a shard is not what it was."""
    name = _name(key)
    if not _is_shard(system, name):
        return
    shard = await system.store.get_shard(name)
    assert shard is not None
    if not shard.pieces:
        return
    locator = shard.pieces[offset % len(shard.pieces)].locator
    await system.store.sync()
    start = system.store.identity.extent_offset(locator.extent) + locator.offset
    _rot(system, start + offset % locator.length)


async def rot_anywhere(system: StoreSystem, extent: int, offset: int) -> None:
    """A byte somewhere on the device is not what it was."""
    start, length = _extent(system, extent)
    _rot(system, start + offset % length)


def _rot(system: StoreSystem, byte: int) -> None:
    system.device.rot(byte)
    system.rotten.append(byte)


async def lose_write(system: StoreSystem, skip: int) -> None:
    """One write will be acknowledged and not done."""
    system.device.faults.lose_write(skip=skip)


async def misdirect_write(system: StoreSystem, blocks: int, skip: int) -> None:
    """One write will be done elsewhere. (A zone would refuse it.)"""
    if not system.settings.geometry.zoned:
        distance = (blocks + 1) * limits.BLOCK_BYTES % system.device.size_bytes
        system.device.faults.misdirect_write(distance or limits.BLOCK_BYTES, skip=skip)


def _extent(system: StoreSystem, extent: int) -> tuple[int, int]:
    identity = system.store.identity
    return identity.extent_offset(extent % identity.extent_count), identity.extent_bytes


def _name(key: int) -> bytes:
    """A key; numbers behind the named ones are those of the many values."""
    return KEYS[key] if key < len(KEYS) else many_key(key - len(KEYS))


def _is_shard(system: StoreSystem, name: bytes) -> bool:
    value = system.model.get(name)
    if value is None or name in RECORD_KEYS or name in system.unread:
        return False
    return name in SHARD_KEYS or len(value) > limits.INLINE_VALUE_BYTES_MAX


FAULTS: tuple[Callable[..., Awaitable[None]], ...] = (
    fail_read,
    fail_region,
    fail_open,
    flip_read,
    fail_write,
    fail_flush,
    fail_reset,
    vanish,
    rot,
    rot_anywhere,
    lose_write,
    misdirect_write,
)
"""Simple to complex."""
