"""Opening: from whatever a power cut left to a state that can be served.

Role: numbered steps, each resolving one kind of crash state. Reads the superblock, the
manifest, the index of each run and the delta log; never the data (except the riders of the last
deltas, at most limits.RIDER_BYTES_MAX each). What is read does not grow with the data held.

    Step 1. Superblock: the newest whole record of the two copies. (A cut while a copy was
            written or started afresh leaves the other whole.)
    Step 2. Manifest and runs, as the root names them. (A cut during a checkpoint leaves the
            old root, and chunks that nothing names.)
    Step 3. Delta log: deltas from the checkpoint on, while whole and consecutive. A delta that
            was never durable counts only if this was the incarnation that wrote it and its
            riders are whole. (A cut during a commit leaves a torn delta, or a whole one with
            torn data: either ends the log.) A log that ends before what was durable is damaged:
            the result is what is left, and not to be written to (delta_log.I2).
    Step 4. Extents: write pointers and live bytes from superblock, manifest and deltas; what
            lies beyond a pointer is referenced by nothing.

Invariants:
    I1. The result is the state after some prefix of the applied batches that contains every
        batch that was durable.
    I2. Nothing is written here; opening.py makes the result durable before anything is served.

Not here: reading damaged devices beyond what a crash can do (fsck.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from shardfs import limits
from shardfs.engine.cache import Cache
from shardfs.engine.chunks import ChunkStore, locator_bytes
from shardfs.engine.delta_log import LoggedDelta, log_chain, log_start, read_log
from shardfs.engine.device import Device, Readable
from shardfs.engine.extent import Extent, Usage
from shardfs.engine.extents import Extents
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.lsm.delta import DeltaPart
from shardfs.engine.lsm.manifest import decode_manifest
from shardfs.engine.lsm.merge import Run
from shardfs.engine.lsm.segment import LostSegment, Segment, SegmentMeta
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.superblock import CopyState, read_copy
from shardfs.engine.superblock_record import ExtentEntry, Identity, Record
from shardfs.errors import CorruptionError, DeviceError, NotShardfsError

_log = logging.getLogger(__name__)

LOG_ENDS_EARLY: Final = "the delta log ends"
"""How the damage begins that is a lost end of the log."""


@dataclass(frozen=True, slots=True)
class SuperblockState:
    """What the superblock says, and which copy to rewrite first."""

    identity: Identity
    record: Record
    entries: dict[int, ExtentEntry]
    worse_copy: int
    notes: tuple[str, ...]


@dataclass(slots=True)
class Replayed:
    """What the delta log gave."""

    durable: int
    log_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    damage: str = ""


async def read_superblock(device: Device) -> SuperblockState:
    """Step 1.

    Raises:
        NotShardfsError: no superblock of any kind is there.
        CorruptionError: one was there, and both copies are damaged.
        IncompatibleError: the format is newer than this build.
        DeviceError: neither copy can be read, or one is damaged and the other cannot be.
    """
    first, second = copies = await read_copies(device)
    numbers = [copy.last.number if copy.last is not None else -1 for copy in copies]
    best = copies[numbers.index(max(numbers))]
    if best.last is None or best.identity is None:
        error = first.error or second.error
        if error is not None:
            raise error
        if first.has_magic or second.has_magic:
            raise CorruptionError(
                f"both superblock copies are damaged (first: {first.trouble}; "
                f"second: {second.trouble})",
                device.path,
            )
        raise NotShardfsError(
            f"{device.path} holds no shardfs: no superblock is there, nor what is left of one; "
            "if it held files, try: shardfs salvage; an empty store is made with: shardfs mkfs"
        )
    notes = []
    for name, copy in (("first", first), ("second", second)):
        if copy.given_up:
            notes.append(f"the {name} superblock copy was about to be started afresh")
        elif copy.last is None:
            notes.append(f"the {name} superblock copy is damaged ({copy.trouble}); used the other")
        elif best.last.clean and copy.last.number != best.last.number:
            notes.append(f"the {name} superblock copy is cut short; used the other")
    worse = numbers.index(min(numbers)) if numbers[0] != numbers[1] else 0
    return SuperblockState(best.identity, best.last, best.entries, worse, tuple(notes))


async def read_copies(device: Readable) -> tuple[CopyState, CopyState]:
    """Both copies of the superblock log, damaged ones too.

    Raises:
        IncompatibleError: the format is newer than this build.
    """
    first = await _try_copy(device, 0)
    return first, await _second_copy(device, first.identity)


async def _try_copy(device: Readable, start: int) -> CopyState:
    """A copy of the superblock; one that the device cannot read is a damaged one."""
    try:
        return await read_copy(device, start)
    except DeviceError as error:
        return CopyState(start, trouble=str(error), error=error)


async def _second_copy(device: Readable, identity: Identity | None) -> CopyState:
    """The second copy; without an identity, looked for at every place it could have."""
    if identity is not None:
        return await _try_copy(device, identity.extent_bytes)
    found = CopyState(0, trouble="not found")
    size = limits.EXTENT_BYTES_MIN
    while size <= limits.EXTENT_BYTES_MAX and size < device.size_bytes:
        candidate = await _try_copy(device, size)
        if candidate.identity is not None and candidate.identity.extent_bytes == size:
            return candidate
        found.has_magic = found.has_magic or candidate.has_magic
        found.error = found.error or candidate.error
        size *= 2
    return found


async def load_tree(
    record: Record,
    chunks: ChunkStore,
    extents: Extents,
    cache: Cache,
    *,
    lost: list[str] | None = None,
) -> tuple[Tree, tuple[Usage, ...]]:
    """Step 2. Also counts the live bytes of runs, and takes those of data from the manifest.

    Args:
        lost: what cannot be read of the runs is told here and goes missing; None: it raises.

    Raises:
        CorruptionError, DeviceError: the manifest or a run's index cannot be read.
    """
    locator = record.root.manifest
    if locator is None:
        return Tree(), ()
    manifest = decode_manifest(await chunks.get(locator, 0, locator.length))
    extents.credit(locator.extent, locator_bytes(locator))
    runs: dict[int, list[Segment]] = {}
    for meta in manifest.segments:
        try:
            segment = await Segment.open(meta, chunks, cache)
        except (CorruptionError, DeviceError) as error:
            if lost is None:
                raise
            lost.append(f"a part of run {meta.run_id} of the tree is lost: {error}")
            segment = LostSegment(meta, str(error), chunks, cache)
        runs.setdefault(meta.run_id, []).append(segment)
        for each in segment.locators:
            extents.credit(each.extent, locator_bytes(each))
    for usage in manifest.usage:
        extent = extents.at(usage.extent)
        if extent.epoch == usage.epoch:
            extent.live_bytes += usage.live_bytes
    tree = Tree(tuple(_as_run(segments) for segments in runs.values()))
    return tree, manifest.usage


def _as_run(segments: list[Segment]) -> Run:
    first: SegmentMeta = segments[0].meta
    return Run(first.run_id, first.level, tuple(segments))


async def replay_log(record: Record, chunks: ChunkStore, extents: Extents, tree: Tree) -> Replayed:
    """Steps 3 and 4: apply the delta log to the tree and the extents.

    Raises:
        DeviceError: the log cannot be read.
    """
    chain = log_chain(record.root, extents)
    log = await read_log(record, extents, chain)
    result = Replayed(record.root.checkpoint)
    accepted = []
    for delta in log.deltas:
        parts = delta.parts
        number = parts[0].number
        if number > log.durable and not await _riders_whole(parts, chunks):
            result.notes.append(f"delta {number} was cut off by a crash: its data is not whole")
            break
        for part in parts:
            _apply(part, delta.sequence, extents, tree)
        accepted.append(delta)
        result.durable = number
        for part in parts:
            # At least a block each, as commit.py counts them; close enough for a bound.
            keys, values = part.block
            result.log_bytes += sum(map(len, keys)) + sum(map(len, values)) + limits.BLOCK_BYTES
    _end_log(record, extents, chain, accepted)
    if result.durable < log.durable:
        result.damage = (
            f"{LOG_ENDS_EARLY} at {result.durable}, but {log.durable} was durable: "
            "the device has lost or damaged data"
        )
    for extent in extents.all:
        if not 0 <= extent.live_bytes <= extents.identity.device_bytes:
            result.damage = f"extent {extent.index} counts {extent.live_bytes} live bytes"
            extent.live_bytes = 0
    return result


async def _riders_whole(parts: list[DeltaPart], chunks: ChunkStore) -> bool:
    for part in parts:
        for rider in part.riders:
            if not await chunks.is_whole(rider.extent, rider.epoch, rider.offset, rider.sequence):
                return False
    return True


def _apply(part: DeltaPart, sequence: int, extents: Extents, tree: Tree) -> None:
    for tail in part.tails:
        extent = extents.at(tail.extent)
        if tail.epoch != extent.epoch:
            continue  # it has been freed since; the superblock knows better
        if extent.state is ExtentState.FREE:
            extent.state = ExtentState.OPEN
            extent.stream = Stream(tail.stream)
            extent.order = sequence
        extent.write_pointer = max(extent.write_pointer, tail.write_pointer)
        extent.live_bytes += tail.live_change
        extent.last_delta = max(extent.last_delta, part.number)
    for key, value in zip(part.block.keys, part.block.values, strict=True):
        tree.set(key, value)


def _end_log(
    record: Record, extents: Extents, chain: list[Extent], accepted: list[LoggedDelta]
) -> None:
    """Writing goes on right behind the last accepted delta.

    What stands there, be it a torn delta or a whole one that was refused, must not be left in
    front of the deltas to come: the next recovery would end at it.
    """
    for extent in chain:
        extent.write_pointer = log_start(record.root, extent)
    last = chain[0] if chain else None
    for delta in accepted:
        for index, end in delta.ends.items():
            last = extents.all[index]
            last.write_pointer = end
            last.last_delta = delta.parts[0].number
    for extent in extents.all:
        in_log = extent.stream is Stream.META and extent.state is ExtentState.OPEN
        if last is not None and in_log and extent.order < last.order:
            extents.seal(extent)
