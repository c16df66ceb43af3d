"""What can still be read of a damaged tree, and how sure it is.

Role: reads deltas and runs from the newest to the oldest. An entry is *certain* if everything newer
than it could be read where its key would be; otherwise it is *doubtful*: a newer one may be lost.
A key that is in no entry is certainly absent, or *lost*, likewise.

Invariants:
    I1. Of each key the newest entry that can be read is kept.
    I2. Memory is bounded: entries are in a temporary database; of what is lost only ranges of keys
        are in memory, one for each block that cannot be read.

Not here: what is made of doubtful and lost keys (reconstruction.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.device import Device
from shardfs.engine.framing import head_bytes, verify_granules
from shardfs.engine.layout import INCARNATION_SHIFT
from shardfs.engine.lsm.entry import decode_block
from shardfs.engine.lsm.manifest import decode_manifest
from shardfs.engine.lsm.segment import SegmentMeta, decode_index
from shardfs.engine.pieces import Locator
from shardfs.engine.superblock_record import ExtentEntry, Identity, Record
from shardfs.errors import UNREADABLE, CorruptionError
from shardfs.fuse.frame_index import DeltaFrame, FrameIndex
from shardfs.fuse.scratch import Scratch

_TABLES: Final = "CREATE TABLE entries (key BLOB PRIMARY KEY, value, doubtful) WITHOUT ROWID;"
_EVERYTHING: Final = (b"", b"\xff" * (limits.KEY_BYTES_MAX + 1))


class TreeRemains(Scratch):
    """The entries of a damaged tree. A context manager.

    Args:
        directory: where the temporary database is made.
    """

    def __init__(self, directory: str | None = None) -> None:
        super().__init__(_TABLES, directory)
        self._lost: list[tuple[bytes, bytes]] = []
        self.losses: list[str] = []
        """What could not be read, a line each."""

    # --- reading

    async def read(
        self,
        device: Device,
        identity: Identity,
        record: Record,
        known: dict[int, ExtentEntry],
        index: FrameIndex,
    ) -> None:
        """Read everything.

        Args:
            record: the newest record of the superblock.
            known: what is known of extents.
            index: of the frames on the device.
        """
        self._read_deltas(identity, record, known, index)
        locator = record.root.manifest
        if locator is None:
            return
        try:
            manifest = decode_manifest(await read_chunk(device, identity, locator))
        except UNREADABLE as error:
            self._lose(_EVERYTHING, f"manifest: {error}")
            return
        runs: dict[int, list[SegmentMeta]] = {}
        for meta in manifest.segments:
            runs.setdefault(meta.run_id, []).append(meta)
        for metas in reversed(runs.values()):
            for meta in metas:
                await self._read_segment(device, identity, meta)

    async def _read_segment(self, device: Device, identity: Identity, meta: SegmentMeta) -> None:
        where = f"run {meta.run_id}"
        try:
            index = decode_index(await read_chunk(device, identity, meta.index_locator))
        except UNREADABLE as error:
            self._lose((meta.first_key, meta.last_key + b"\0"), f"index of {where}: {error}")
            return
        ends = [*index.first_keys[1:], meta.last_key + b"\0"]
        lost = []
        for first, end, locator in zip(index.first_keys, ends, index.blocks, strict=True):
            await trio.lowlevel.checkpoint()
            if end <= meta.first_key:
                continue
            try:
                block = decode_block(await read_chunk(device, identity, locator))
            except UNREADABLE as error:
                lost.append(((max(first, meta.first_key), end), f"block of {where}: {error}"))
                continue
            for key, value in zip(block.keys, block.values, strict=True):
                if key >= meta.first_key:
                    self._add(key, value)
        for keys, why in lost:  # it hides what is older, not its neighbours
            self._lose(keys, why)

    def _read_deltas(
        self, identity: Identity, record: Record, known: dict[int, ExtentEntry], index: FrameIndex
    ) -> None:
        checkpoint = record.root.checkpoint
        whole: dict[int, list[DeltaFrame]] = {}
        durable = record.root.durable_delta
        for number in index.delta_numbers(checkpoint):
            frames = _newest_whole(index.delta(number), identity, known)
            if frames:
                whole[number] = frames
                durable = max(durable, *(each.part.durable for each in frames))
        last = durable
        while last + 1 in whole and _counts(whole[last + 1], record, index):
            last += 1
        missing = last
        for number in sorted((each for each in whole if checkpoint < each <= last), reverse=True):
            self._lose_deltas(number + 1, missing)
            missing = number - 1
            for each in whole[number]:
                block = each.part.block
                for key, value in zip(block.keys, block.values, strict=True):
                    self._add(key, value)
        self._lose_deltas(checkpoint + 1, missing)

    def _lose_deltas(self, first: int, last: int) -> None:
        """What is older than these may have been changed by them. There may be very many: a damaged
        number is as good as any."""
        if first == last:
            self._lose(_EVERYTHING, f"delta {first} is not there")
        elif first < last:
            self._lose(_EVERYTHING, f"deltas {first} to {last} are not there")

    def _add(self, key: bytes, value: bytes) -> None:
        values = (key, value, self._is_in_lost(key))
        self._db.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", values)

    def _lose(self, keys: tuple[bytes, bytes], why: str) -> None:
        if len(self.losses) < limits.KIB:
            self.losses.append(why)
        start, end = keys
        kept = []
        for a, b in self._lost:
            if b < start or a > end:
                kept.append((a, b))
            else:
                start, end = min(a, start), max(b, end)
        self._lost = sorted([*kept, (start, end)])

    def _is_in_lost(self, key: bytes) -> bool:
        at = bisect_right(self._lost, key, key=lambda each: each[0]) - 1
        return at >= 0 and key < self._lost[at][1]

    # --- asking

    def entries(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
        """(key, encoded value, whether it is doubtful) in [start, end), ascending."""
        query = "SELECT key, value, doubtful FROM entries WHERE key >= ? AND key < ? ORDER BY key"
        for key, value, doubtful in self._db.execute(query, (start, end)):
            yield key, value, bool(doubtful)

    def get(self, key: bytes) -> tuple[bytes, bool] | None:
        """(encoded value, whether it is doubtful) of a key."""
        query = "SELECT value, doubtful FROM entries WHERE key = ?"
        row = self._db.execute(query, (key,)).fetchone()
        return None if row is None else (row[0], bool(row[1]))

    def is_lost(self, key: bytes) -> bool:
        """There is no entry, and it cannot be told whether there was one."""
        return self._is_in_lost(key) and self.get(key) is None


def _newest_whole(
    frames: list[DeltaFrame], identity: Identity, known: dict[int, ExtentEntry]
) -> list[DeltaFrame]:
    """The parts of a delta, the last written of each; nothing unless all are there."""
    parts: dict[int, DeltaFrame] = {}
    for each in frames:
        entry = known.get(each.at // identity.extent_bytes)
        if entry is None or entry.epoch <= each.epoch:
            parts[each.part.part] = each
    if not parts or len(parts) != next(iter(parts.values())).part.parts:
        return []
    return [parts[number] for number in sorted(parts)]


def _counts(frames: list[DeltaFrame], record: Record, index: FrameIndex) -> bool:
    """Whether a delta that was perhaps never durable counts; as recovery judges it."""
    return all(
        each.sequence >> INCARNATION_SHIFT == record.incarnation
        and all(index.has_whole(rider.sequence) for rider in each.part.riders)
        for each in frames
    )


async def read_chunk(device: Device, identity: Identity, locator: Locator) -> bytes:
    """A chunk's payload, verified against its locator, whatever is known of extents.

    Raises:
        DeviceError, CorruptionError: it cannot be read as it was written.
    """
    where = f"extent {locator.extent} byte {locator.offset}"
    if locator.extent >= identity.extent_count:
        raise CorruptionError("there is no such extent", where)
    at = identity.extent_offset(locator.extent) + locator.offset
    at += head_bytes(locator.key_bytes, locator.length)
    data = bytes(await device.read(at, locator.length))
    verify_granules(data, locator.checksums, 0, where)
    return data
