"""Composes the parts of a store over a device, through recovery to ready.

Role: the one place that constructs the engine's components, in the order they need each other.

Invariants:
    I1. A read-only open writes nothing.
    I2. A writable open returns only when what recovery found is durable, under a new
        incarnation.

Ordering: recovery reads -> device flush (what a killed process left in the operating system's
cache becomes durable before it is relied on) -> the worse superblock copy afresh -> the other
copy afresh -> record that declares the delta log's extents. A power cut at any of these leaves
one whole superblock copy, which names the same state.

Not here: what recovery decides (recovery.py), serving (store.py).
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

import trio

from shardfs.engine.cache import Cache
from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.commit import Committer
from shardfs.engine.device import Device
from shardfs.engine.extents import Extents
from shardfs.engine.health import Health
from shardfs.engine.layout import INCARNATION_SHIFT, ExtentState
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.recovery import (
    Replayed,
    SuperblockState,
    load_tree,
    read_superblock,
    replay_log,
)
from shardfs.engine.reserve import reserve_extents
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.superblock import Superblock
from shardfs.engine.superblock_record import Identity, check_features
from shardfs.errors import CorruptionError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """The components of one open store."""

    device: Device
    health: Health
    scheduler: Scheduler
    superblock: Superblock
    extents: Extents
    chunks: ChunkStore
    cache: Cache
    tree: Tree
    committer: Committer
    checkpointer: Checkpointer
    found: SuperblockState
    replayed: Replayed
    notes: tuple[str, ...]


async def open_parts(
    device: Device,
    nursery: trio.Nursery,
    *,
    read_only: bool,
    cache_bytes: int,
    tolerant: bool = False,
) -> Parts:
    """Recover, and return everything that a Store is made of.

    Args:
        device: to open.
        nursery: runs the writes.
        read_only: write nothing.
        cache_bytes: bound of the buffer cache.
        tolerant: see StoreOptions.

    Raises:
        NotShardfsError, IncompatibleError, CorruptionError, DeviceError: see recovery.py.
    """
    assert read_only or not tolerant, "what is incomplete must not be written"
    found = await read_superblock(device)
    identity = found.identity
    lost = _missing(device, identity)
    if lost and not tolerant:
        raise CorruptionError(lost[0], device.path)
    device.expect_extents(identity.extent_bytes)
    health = _health(device, identity, read_only=read_only)
    scheduler = Scheduler(device, health, nursery)
    incarnation = found.record.incarnation + 1
    sequence = itertools.count(incarnation << INCARNATION_SHIFT)
    superblock = Superblock(identity, scheduler, device, incarnation, found.record.number, sequence)
    extents = Extents(
        device, scheduler, superblock, sequence, reserve_extents(identity.extent_count)
    )
    extents.restore(found.entries.values())
    chunks = ChunkStore(extents, sequence)
    cache = Cache(cache_bytes)
    tree, usage = await load_tree(
        found.record, chunks, extents, cache, lost=lost if tolerant else None
    )
    replayed = await replay_log(found.record, chunks, extents, tree)
    if replayed.damage:
        health.make_read_only(replayed.damage)
    extents.begin()
    root = found.record.root._replace(durable_delta=replayed.durable)
    committer = Committer(
        chunks, extents, scheduler, superblock, tree, health, root, replayed.log_bytes
    )
    checkpointer = Checkpointer(chunks, extents, cache, scheduler, committer, tree, usage)
    parts = Parts(
        device,
        health,
        scheduler,
        superblock,
        extents,
        chunks,
        cache,
        tree,
        committer,
        checkpointer,
        found,
        replayed,
        (*found.notes, *lost, *replayed.notes),
    )
    for note in parts.notes:
        _log.info("%s: %s", device.path, note)
    if not health.reason:
        await _make_durable(parts)
    return parts


def _missing(device: Device, identity: Identity) -> list[str]:
    """What of the device is not there, in words."""
    wanted = identity.extent_count * identity.extent_bytes
    if device.size_bytes >= wanted:
        return []
    return [
        f"the device has {device.size_bytes} bytes, its store needs {wanted}: it has been cut off"
    ]


def _health(device: Device, identity: Identity, *, read_only: bool) -> Health:
    """Whether the store may be written, before anything of it has been read.

    Raises:
        IncompatibleError: it must not even be read.
    """
    reason = check_features(identity)
    if read_only:
        reason = "it was opened read-only"
    elif device.read_only:
        reason = "the device is write-protected"
    health = Health()
    if reason:
        health.make_read_only(reason, expected=True)
    return health


async def _make_durable(parts: Parts) -> None:
    """What recovery found becomes the state that a later crash comes back to (I2)."""
    device, extents = parts.device, parts.extents
    await device.flush()
    if device.write_pointer(0) is not None:
        await _reset_free_zones(device, extents)
    root = parts.committer.root
    await parts.superblock.start_logs(root, extents.entries(), parts.found.worse_copy)
    await parts.scheduler.settle(await parts.committer.write_record())


async def _reset_free_zones(device: Device, extents: Extents) -> None:
    """A cut between the record that frees an extent and its reset leaves it written to."""
    for extent in extents.all:
        offset = extents.identity.extent_offset(extent.index)
        if extent.state is ExtentState.FREE and device.write_pointer(offset):
            await device.reset(offset, extents.extent_bytes)
