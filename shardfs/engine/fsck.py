"""Verifies every structure of an open store. Finds, and never repairs.

Role: reads the whole tree and, when asked, every byte of data, and says what does not hold. Not
needed for mounting: recovery is part of every open. A store opened read-only, after a crash too,
is checked as recovery sees it.

Invariants checked (each finding names its number):
    E1.  Both superblock copies are whole, of one store, and end with the same record. (A crash
         may leave one cut short; where it can explain what is missing, that is a note.)
    E2.  The manifest lists runs whose levels fall with age, and segments in key order.
    E3.  Every run index and block reads back and decodes; first keys, last keys, counts and
         bytes are those of the manifest; keys rise; the filter admits every key.
    E4.  Every entry decodes.
    E5.  The delta log reaches as far as the superblock says that it was durable.
    E6.  Every referenced chunk lies in an extent that is in use, by the stream of its kind, of
         the same epoch, and below its write pointer.
    E7.  No two referenced chunks overlap.
    E8.  The live bytes counted for an extent are those of the pieces of data (liveness.py), or of
         the other frames, that are referenced in it.
    E9.  Nothing refers to a free extent, and it counts no live bytes.
    E10. The frame on the device is the one the locator means: kind, owner, epoch, sequence,
         length, checksums.
    E11. With `data`: every granule of every referenced chunk matches its checksum.
    E12. Extents' own figures are possible; the device has as much of a zone as is referenced.

Invariants:
    I1. Memory: some 16 bytes for each chunk, and what is kept of the findings (findings.I1).

Not here: what files need (fuse/fsck.py), opening (recovery.py), guessing what damage meant.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.findings import Finding, Report
from shardfs.engine.framing import Frame, decode_head, head_bytes
from shardfs.engine.layout import ExtentState, Kind, Stream
from shardfs.engine.liveness import live_bytes
from shardfs.engine.lsm.entry import TOMBSTONE, decode_block
from shardfs.engine.lsm.filter import hash_of
from shardfs.engine.lsm.manifest import decode_manifest
from shardfs.engine.lsm.segment import Segment
from shardfs.engine.pieces import DIGEST_BYTES, Locator, Shard, granule_bytes, locators
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store
from shardfs.engine.superblock_check import check_superblock
from shardfs.errors import UNREADABLE

_KEY_END: Final = b"\xff" * (limits.KEY_BYTES_MAX + 1)
_STREAMS: Final = {
    Kind.DATA: frozenset(DATA_STREAMS),
    Kind.RUN_BLOCK: frozenset({Stream.RUNS}),
    Kind.RUN_INDEX: frozenset({Stream.RUNS}),
    Kind.MANIFEST: frozenset({Stream.RUNS}),
}
_OFFSET_BITS: Final = 32


async def check_store(store: Store, *, data: bool = False, report: Report | None = None) -> Report:
    """Verify an open store.

    Args:
        store: nobody may change it meanwhile. What is not durable yet is made so first.
        data: verify every checksum of the data too, which reads all of it.
        report: to add to; a new one if None.

    Raises:
        DeviceError, ReadOnlyError: what is pending cannot be made durable.
    """
    check = _StoreCheck(store, data, report if report is not None else Report())
    await store.sync()
    await check.run()
    return check.report


class _StoreCheck:
    """One run of the check. A friend of the store: it looks at its parts."""

    def __init__(self, store: Store, data: bool, report: Report) -> None:
        self.report = report
        self._store = store
        self._data = data
        self._extents = store._extents
        self._chunks = store._chunks
        self._tree = store._tree
        self._root = store._committer.root
        self._places: dict[int, array[int]] = {}
        self._live: dict[int, int] = {}
        self._complete = True

    async def run(self) -> None:
        """Every check, in the order of opening."""
        store = self._store
        await check_superblock(store._parts.device, store.identity, self.report)
        if self._store.damage:
            self._find("E5", self._store.damage, where="delta log")
        await self._check_manifest()
        for run in self._tree.runs:
            self.report.count("runs")
            for segment in run.segments:
                await self._check_segment(segment)
        await self._check_entries()
        self._check_extents()
        self.report.count("extents", len(self._extents.all))

    # --- manifest -----------------------------------------------------------------------------

    async def _check_manifest(self) -> None:
        """E2, and the manifest's own chunk."""
        locator = self._root.manifest
        if locator is None:
            return
        await self._check_chunk(locator, Kind.MANIFEST, b"", self._root.checkpoint, "manifest")
        try:
            manifest = decode_manifest(await self._chunks.get(locator, 0, locator.length))
        except UNREADABLE as error:
            self._find("E2", str(error), where="manifest", locator=locator)
            return
        if manifest.checkpoint != self._root.checkpoint:
            self._find("E2", "it is of another checkpoint than the superblock", where="manifest")
        levels = [run.level for run in self._tree.runs]
        if any(older < newer for older, newer in pairwise(levels)):
            self._find("E2", "a newer run has a higher level than an older one", where="manifest")
        ids = [run.run_id for run in self._tree.runs]
        if len(set(ids)) != len(ids):
            self._find("E2", "two runs have the same number", where="manifest")
        for run in self._tree.runs:
            for left, right in pairwise(run.segments):
                if left.meta.last_key >= right.meta.first_key:
                    self._find("E2", "segments overlap", where=f"run {run.run_id}")

    # --- runs ---------------------------------------------------------------------------------

    async def _check_segment(self, segment: Segment) -> None:
        """E3."""
        meta, index = segment.meta, segment.index
        where = f"run {meta.run_id}, segment from key {meta.first_key[:32].hex()}"
        await self._check_chunk(
            meta.index_locator, Kind.RUN_INDEX, index.first_keys[0], meta.run_id, where
        )
        bounds = [*index.first_keys[1:], meta.last_key + b"\0"]
        last_key = b""
        entries = tombstones = 0
        for first_key, end, locator in zip(index.first_keys, bounds, index.blocks, strict=True):
            await self._check_chunk(locator, Kind.RUN_BLOCK, first_key, meta.run_id, where)
            self.report.count("blocks")
            try:
                block = decode_block(await self._chunks.get(locator, 0, locator.length))
            except UNREADABLE as error:
                self._find("E3", str(error), where=where, locator=locator)
                self.report.lost_keys.append((first_key, end))
                continue
            entries += len(block.keys)
            tombstones += block.values.count(TOMBSTONE)
            if not block.keys or block.keys[0] != first_key or first_key <= last_key:
                self._find("E3", "a block begins with the wrong key", where=where, locator=locator)
            if block.keys and block.keys[-1] >= end:
                self._find("E3", "a block reaches into the next", where=where, locator=locator)
            missed = [key for key in block.keys if not index.filter.may_contain(hash_of(key))]
            if missed:
                self._find("E3", f"the filter denies {len(missed)} keys", where, missed[0], locator)
            last_key = block.keys[-1] if block.keys else last_key
        if self.report.lost_keys:
            return
        total = sum(locator_bytes(locator) for locator in segment.locators)
        found = (entries, tombstones, total, last_key)
        told = (meta.entry_count, meta.tombstone_count, meta.total_bytes, meta.last_key)
        if found != told or not index.first_keys[0] <= meta.first_key <= meta.last_key:
            self._find("E3", "it is not what the manifest says", where=where)

    # --- entries and data ---------------------------------------------------------------------

    async def _check_entries(self) -> None:
        """E4, and the chunks of every shard; around what E3 found unreadable."""
        for start, end in _without(self.report.lost_keys):
            try:
                async for key, value in self._tree.scan(start, end):
                    self.report.count("entries")
                    if isinstance(value, Shard):
                        await self._check_shard(key, value)
            except UNREADABLE as error:
                self._find("E4", f"the tree cannot be read on: {error}", where="tree")
                self._complete = False
        self._complete = self._complete and not self.report.lost_keys

    async def _check_shard(self, key: bytes, shard: Shard) -> None:
        self.report.count("shards")
        for (extent, _), live in live_bytes(shard.pieces).items():
            self._live[extent] = self._live.get(extent, 0) + live
        for piece in shard.pieces:
            if piece.is_damaged:
                self.report.count("lost_bytes", piece.length)
        for locator in locators(shard.pieces).values():
            await self._check_chunk(locator, Kind.DATA, key, None, f"key {key[:48].hex()}")
            if self._data:
                await self._verify(key, shard, locator)

    async def _verify(self, key: bytes, shard: Shard, locator: Locator) -> None:
        """E11: the whole chunk; where that fails, granule by granule."""
        self.report.count("data_bytes", locator.length)
        try:
            await self._chunks.get(locator, 0, locator.length)
        except UNREADABLE:
            granule = granule_bytes(locator.length)
            for start in range(0, locator.length, granule):
                length = min(granule, locator.length - start)
                try:
                    await self._chunks.get(locator, start, length)
                except UNREADABLE as error:
                    self._find_bad_granule(key, shard, locator, start, length, error)

    def _find_bad_granule(
        self,
        key: bytes,
        shard: Shard,
        locator: Locator,
        start: int,
        length: int,
        error: Exception,
    ) -> None:
        at = locator.offset + head_bytes(locator.key_bytes, locator.length) + start
        hit = False
        for piece in shard.pieces:
            first = max(start, piece.skip)
            last = min(start + length, piece.skip + piece.length)
            if piece.locator == locator and first < last:
                hit = True
                self.report.add(
                    Finding(
                        "E11",
                        f"data is damaged: {error}",
                        f"key {key[:48].hex()}",
                        key,
                        piece.start + first - piece.skip,
                        last - first,
                        locator.extent,
                        at,
                    )
                )
        if not hit:
            message = f"data that nobody uses any more is damaged: {error}"
            self._find("E11", message, f"key {key[:48].hex()}", key, locator)

    async def _check_chunk(
        self, locator: Locator, kind: Kind, owner: bytes, owner_offset: int | None, where: str
    ) -> None:
        """E6, E9, E10; and notes its place for E7 and E8."""
        await trio.lowlevel.checkpoint()
        self.report.count("chunks")
        key = owner if kind is Kind.DATA else None
        if locator.extent >= len(self._extents.all):
            self._find("E6", "it refers to an extent beyond the device", where, key, locator)
            return
        extent = self._extents.all[locator.extent]
        size = locator_bytes(locator)
        trouble = ""
        if extent.state is ExtentState.FREE:
            self._find("E9", "it refers to a free extent", where, key, locator)
        elif extent.epoch != locator.epoch:
            trouble = f"of epoch {locator.epoch}, but the extent has {extent.epoch}"
        elif extent.stream not in _STREAMS[kind]:
            trouble = f"in an extent of stream {extent.stream.name}"
        elif locator.offset + size > extent.write_pointer:
            trouble = f"beyond the extent's write pointer {extent.write_pointer}"
        if trouble:
            self._find("E6", f"it refers to a chunk {trouble}", where, key, locator)
        if kind is not Kind.DATA:
            self._live[locator.extent] = self._live.get(locator.extent, 0) + size
        places = self._places.setdefault(locator.extent, array("Q"))
        places.append(locator.offset << _OFFSET_BITS | size)
        if self._extents.unwritten(locator.extent, locator.offset) is not None:
            return
        try:
            frame = await read_head(self._store, locator)
        except UNREADABLE as error:
            self._find("E10", str(error), where, key, locator)
            return
        if not is_meant(frame, locator, kind, owner, owner_offset):
            self._find("E10", "another frame stands there", where, key, locator)

    # --- extents ------------------------------------------------------------------------------

    def _check_extents(self) -> None:
        """E7, E8, E9, E12."""
        device = self._store._parts.device
        for extent in self._extents.all:
            where = f"extent {extent.index}"
            fixed = extent.index < limits.SUPERBLOCK_EXTENTS
            if fixed != (extent.state is ExtentState.SUPERBLOCK):
                self._find("E12", f"its state is {extent.state.name}", where=where)
            if extent.write_pointer > self._extents.extent_bytes:
                self._find("E12", f"its write pointer is {extent.write_pointer}", where=where)
            on_zone = device.write_pointer(self._store.identity.extent_offset(extent.index))
            places = sorted(self._places.get(extent.index, ()))
            ends = [(each >> _OFFSET_BITS) + (each & (1 << _OFFSET_BITS) - 1) for each in places]
            if on_zone is not None and ends and ends[-1] > on_zone:
                self._find("E12", f"its zone ends at {on_zone}, its data later", where=where)
            for end, (_, place) in zip(ends, pairwise(places), strict=False):
                if place >> _OFFSET_BITS < end:
                    self._find("E7", f"chunks overlap before byte {end}", where=where)
            live = self._live.get(extent.index, 0)
            if extent.state is ExtentState.FREE and extent.live_bytes:
                self._find("E9", f"it is free and counts {extent.live_bytes} live", where=where)
            elif extent.live_bytes != live and self._complete:
                message = f"it counts {extent.live_bytes} live bytes, {live} are referenced"
                self._find("E8", message, where=where)

    def _find(
        self,
        invariant: str,
        message: str,
        where: str = "",
        key: bytes | None = None,
        locator: Locator | None = None,
    ) -> None:
        extent = locator.extent if locator is not None else None
        offset = locator.offset if locator is not None else None
        self.report.add(Finding(invariant, message, where, key, None, None, extent, offset))


async def read_head(store: Store, locator: Locator) -> Frame:
    """The head of the frame that stands where a locator points.

    Raises:
        DeviceError, CorruptionError: there is none that can be read.
    """
    size = head_bytes(locator.key_bytes, locator.length)
    room = store._extents.extent_bytes - locator.offset
    data = await store._extents.read(locator.extent, locator.offset, min(size, room))
    return decode_head(data, store_id=store.identity.store_id)


def is_meant(
    frame: Frame, locator: Locator, kind: Kind, owner: bytes, owner_offset: int | None
) -> bool:
    """Whether a frame is the one that a locator names."""
    return (
        frame.kind is kind
        and frame.owner == owner
        and (owner_offset is None or frame.owner_offset == owner_offset)
        and frame.epoch == locator.epoch
        and frame.sequence == locator.sequence
        and frame.payload_bytes == locator.length
        and frame.checksums == locator.checksums
        and len(frame.checksums) % DIGEST_BYTES == 0
    )


def _without(ranges: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """What is left of all keys without these ranges [start, end)."""
    at = b""
    for start, end in sorted(ranges):
        if start > at:
            yield at, start
        at = max(at, end)
    yield at, _KEY_END
