"""A store as its bytes: what can be found on a device that may not open any more.

Role: reads structures by their place, and follows the superblock to the manifest, the runs and the
delta log as far as they can be read. What cannot be is said, and gone on behind.

Invariants:
    I1. Nothing is written, and nothing is believed without its checksums, but where the caller
        asks for the bytes of one place.
    I2. Memory is bounded: one frame at a time, the manifest, and the values of one key.

Not here: taking structures apart (dissection.py), opening a store in order (opening.py).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from shardfs import limits
from shardfs.engine.chunks import payload_offset
from shardfs.engine.device import Readable
from shardfs.engine.dissection import FRAME_BYTES_MAX
from shardfs.engine.frame_walk import FrameWalk, Span, SpanKind
from shardfs.engine.framing import decode_frame, decode_head, head_bytes, verify_granules
from shardfs.engine.layout import FRAME_HEADER, ExtentState, Kind, Stream
from shardfs.engine.lsm.delta import decode_delta
from shardfs.engine.lsm.entry import decode_block
from shardfs.engine.lsm.manifest import Manifest, decode_manifest
from shardfs.engine.lsm.segment import SegmentMeta, decode_index
from shardfs.engine.pieces import Locator
from shardfs.engine.recovery import read_copies
from shardfs.engine.superblock import CopyState
from shardfs.engine.superblock_record import ExtentEntry, Identity, Record
from shardfs.errors import UNREADABLE, CorruptionError, UsageError


class Version(NamedTuple):
    """One value of a key.

    source: where it stands, in words.
    address: of the frame that holds it, on the device.
    value: encoded, tag included.
    """

    source: str
    address: int
    value: bytes


@dataclass
class RawStore:
    """What is found on a device. Made by `open_raw_store`.

    copies: of the superblock log.
    identity, record, entries: of the better copy, if there is one.
    """

    device: Readable
    copies: tuple[CopyState, CopyState]
    identity: Identity | None = None
    record: Record | None = None
    entries: dict[int, ExtentEntry] = field(default_factory=dict)
    extent_bytes: int = 0

    def address(self, extent: int, offset: int) -> int:
        """The byte of the device at an offset within an extent.

        Raises:
            UsageError: it is not on the device, or nobody knows how large extents are.
        """
        if not self.extent_bytes:
            raise UsageError(
                "no superblock can be read, so the size of an extent is not known; say it by "
                "--extent-size, or name a byte of the device by --offset"
            )
        address = extent * self.extent_bytes + offset
        if offset >= self.extent_bytes or address >= self.device.size_bytes:
            raise UsageError(f"extent {extent} byte {offset} is not on the device")
        return address

    async def frame_at(self, address: int) -> bytes:
        """The bytes of what should be a frame: as long as its header says, if that is possible.

        Raises:
            UsageError: the device is not that long.
            DeviceError: they cannot be read.
        """
        if not 0 <= address < self.device.size_bytes:
            raise UsageError(f"there is no byte {address} on a device of {self.device.size_bytes}")
        length = min(FRAME_BYTES_MAX, self.device.size_bytes - address)
        head = bytes(await self.device.read(address, min(length, limits.BLOCK_BYTES)))
        try:
            header = FRAME_HEADER.unpack(head)
        except CorruptionError:
            return head
        key, payload = header[3], header[4]
        if payload > limits.CHUNK_BYTES_MAX or key > limits.KEY_BYTES_MAX:
            return head
        wanted = min(length, head_bytes(key, payload) + payload)
        if wanted <= len(head):
            return head[:wanted]
        return bytes(await self.device.read(address, wanted))

    def spans(self, extent: int) -> FrameWalk:
        """A walk over one extent.

        Raises:
            UsageError: it is not on the device.
        """
        base = self.address(extent, 0)
        entry = self.entries.get(extent)
        is_superblock = entry is None or entry.state == ExtentState.SUPERBLOCK

        async def read(offset: int, length: int) -> bytes | memoryview:
            return await self.device.read(base + offset, length)

        return FrameWalk(
            read,
            min(self.extent_bytes, self.device.size_bytes - base),
            store_id=self.identity.store_id if self.identity is not None else None,
            epoch=None if is_superblock or entry is None else entry.epoch,
        )

    async def payload(self, locator: Locator) -> bytes:
        """The verified payload of a chunk.

        Raises:
            CorruptionError, DeviceError, UsageError: it cannot be had.
        """
        address = self.address(locator.extent, payload_offset(locator))
        if address + locator.length > self.device.size_bytes:
            raise CorruptionError("the device ends inside the chunk", f"byte {address}")
        data = bytes(await self.device.read(address, locator.length))
        verify_granules(data, locator.checksums, 0, f"chunk at byte {address}")
        return data

    def manifest_locator(self) -> Locator:
        """Where the superblock says that the manifest is.

        Raises:
            UsageError: there is no superblock, or no manifest yet.
        """
        if self.record is None:
            raise UsageError("no superblock can be read; name a place: EXTENT:OFFSET or --offset")
        if self.record.root.manifest is None:
            raise UsageError("there is no manifest yet: all entries are in the delta log")
        return self.record.root.manifest

    async def manifest(self) -> Manifest:
        """The manifest.

        Raises:
            CorruptionError, DeviceError, UsageError: it cannot be read, or there is none.
        """
        return decode_manifest(await self.payload(self.manifest_locator()))

    # --- the versions of a key ----------------------------------------------------------------

    async def versions(self, key: bytes, troubles: list[str]) -> list[Version]:
        """Every value of a key that deltas and runs still hold: deltas by number, newest first,
        then runs, newest first.

        Args:
            troubles: what could not be looked into is added.
        """
        found = await self._in_deltas(key, troubles)
        found.sort(key=lambda each: each[:2], reverse=True)
        return [*(version for _, _, version in found), *await self._in_runs(key, troubles)]

    async def _in_deltas(self, key: bytes, troubles: list[str]) -> list[tuple[int, int, Version]]:
        """With each its delta's number and its frame's sequence number."""
        found = []
        checkpoint = self.record.root.checkpoint if self.record is not None else 0
        for number, entry in sorted(self.entries.items()):
            if entry.stream != Stream.META:
                continue
            async for span in self.spans(number).spans():
                if span.frame is None or span.frame.kind is not Kind.DELTA:
                    continue
                address = self.address(number, span.start)
                try:
                    frame, payload = decode_frame(await self.frame_at(address))
                    part = decode_delta(payload)
                except UNREADABLE as error:
                    troubles.append(f"the delta at byte {address}: {error}")
                    continue
                if key not in part.block.keys:
                    continue
                state = _delta_state(span, part.number, checkpoint)
                value = part.block.values[part.block.keys.index(key)]
                version = Version(f"delta {part.number}{state}", address, value)
                found.append((part.number, frame.sequence, version))
        return found

    async def _in_runs(self, key: bytes, troubles: list[str]) -> list[Version]:
        found: list[Version] = []
        if self.record is None or self.record.root.manifest is None:
            return found
        try:
            manifest = await self.manifest()
        except UNREADABLE as error:
            troubles.append(f"the manifest: {error}")
            return found
        for meta in reversed(manifest.segments):
            if not meta.first_key <= key <= meta.last_key:
                continue
            try:
                version = await self._in_segment(meta, key)
            except (*UNREADABLE, UsageError) as error:
                troubles.append(f"run {meta.run_id}: {error}")
                continue
            if version is not None:
                found.append(version)
        return found

    async def _in_segment(self, meta: SegmentMeta, key: bytes) -> Version | None:
        index = decode_index(await self.payload(meta.index_locator))
        number = bisect_right(index.first_keys, key) - 1
        if number < 0:
            return None
        locator = index.blocks[number]
        block = decode_block(await self.payload(locator))
        if key not in block.keys:
            return None
        address = self.address(locator.extent, locator.offset)
        source = f"run {meta.run_id} (level {meta.level}), block {number}"
        return Version(source, address, block.values[block.keys.index(key)])


def _delta_state(span: Span, number: int, checkpoint: int) -> str:
    if span.kind is SpanKind.STALE:
        return ", of an earlier life of the extent"
    return f", which runs hold (checkpoint {checkpoint})" if number <= checkpoint else ""


async def open_raw_store(device: Readable, extent_bytes: int | None = None) -> RawStore:
    """Look at a device.

    Args:
        extent_bytes: size of an extent, where no superblock says it.

    Raises:
        IncompatibleError: the format is newer than this build.
    """
    copies = await read_copies(device)
    best = max(copies, key=lambda copy: copy.last.number if copy.last is not None else -1)
    store = RawStore(device, copies, best.identity, best.last, best.entries)
    if best.identity is not None:
        store.extent_bytes = best.identity.extent_bytes
    if extent_bytes is not None:
        store.extent_bytes = extent_bytes
    return store


async def record_addresses(store: RawStore, copy: int) -> list[int]:
    """Where the records of one copy of the superblock log stand, as far as it is whole.

    Raises:
        DeviceError: it cannot be read.
    """
    state = store.copies[copy]
    start, end = state.start, state.start + state.end
    found = []
    at = start
    while at < end:
        head = bytes(await store.device.read(at, min(limits.BLOCK_BYTES, end - at)))
        found.append(at)
        try:
            at += -(-decode_head(head).total_bytes // limits.BLOCK_BYTES) * limits.BLOCK_BYTES
        except CorruptionError:
            at += limits.BLOCK_BYTES
    return found
