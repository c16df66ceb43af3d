"""Append-only extents: placing, soft write pointers, reset.

Role: the device is cut into extents of equal size. Each stream writes into one open extent at a
time, at its write pointer, never before it. Frames gather in the extent's *tail* in memory,
which is handed to the scheduler in whole blocks when it is large enough or somebody needs it.

Invariants:
    I1. An extent's bytes change only behind its write pointer, until a reset.
    I2. No referenced frame lies at or beyond the recorded write pointer (Tail and ExtentEntry
        carry it); after a crash writing goes on there.
    I3. An extent is reset only when it is dead (extent_table.I1): nothing refers to it any more
        *persistently*, nobody reads it, and nothing of it waits to be written.
    I4. A freed extent is handed out only after the superblock record that frees it, with the
        epoch raised, is persistent.
    I5. Frames of the META stream go only into extents that the superblock names (declared).
    I6. User data takes none of the last `reserve` free extents; data whose space was set aside
        before (Store.reserve) may go down to half of them.

Ordering: free: superblock record (epoch + 1) -> device reset -> discard -> allocation.

Not here: what is known of each extent, and its live bytes (extent_table.py); what frames mean
(framing.py), when to free (reclaim.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shardfs import limits
from shardfs.engine.dependency import PERSISTENT, Dependency
from shardfs.engine.device import Buffer, Device
from shardfs.engine.extent import Extent, Tail
from shardfs.engine.extent_table import ExtentTable
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.superblock import Superblock
from shardfs.engine.superblock_record import ExtentEntry, Identity
from shardfs.errors import NoSpaceError


class Extents(ExtentTable):
    """All extents of one store, to be written and read.

    Args:
        device: for reads and resets.
        scheduler: for writes.
        superblock: declares extents of the META stream, and freed ones.
        sequence: gives rising numbers, for the order in which extents are opened.
        reserve: free extents that user data may not take.
    """

    def __init__(
        self,
        device: Device,
        scheduler: Scheduler,
        superblock: Superblock,
        sequence: Iterator[int],
        reserve: int,
    ) -> None:
        self._device = device
        self._scheduler = scheduler
        self._superblock = superblock
        identity = superblock.identity
        super().__init__(identity.extent_count, identity.extent_bytes, sequence, reserve)
        self._current: dict[Stream, Extent] = {}
        self._spares: deque[Extent] = deque()
        self._declared_by: Dependency | None = None
        self._unwritten: dict[tuple[int, int], Sequence[Buffer]] = {}
        self.released_count = 0
        """Extents given back since the open."""

    @property
    def identity(self) -> Identity:
        """Of the store, as the next superblock record says it."""
        return self._superblock.identity

    # --- opening ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Build the free list and the open extents from the restored states."""
        self.index_states()
        self._free.extend(each for each in self.all if each.state is ExtentState.FREE)
        opened = [each for each in self.all if each.state is ExtentState.OPEN]
        for extent in sorted(opened, key=lambda each: each.order):
            extent.write_pointer += -extent.write_pointer % limits.BLOCK_BYTES
            device_pointer = self._device.write_pointer(self.identity.extent_offset(extent.index))
            if device_pointer not in (None, extent.write_pointer):
                # A zoned device kept more, or less, than is referenced: no place to go on at.
                self.seal(extent)
                continue
            if extent.stream is Stream.META and extent.stream in self._current:
                self._spares.append(extent)
                continue
            previous = self._current.get(extent.stream)
            if previous is not None:
                self.seal(previous)
            self._current[extent.stream] = extent
        for extent in self.all:
            if extent.state in (ExtentState.OPEN, ExtentState.SEALED):
                self.space.taken(extent.stream)
                self.space.live_changed(extent.stream, extent.live_bytes)

    # --- appending --------------------------------------------------------------------------

    def place(
        self, stream: Stream, length: int, before: Dependency = PERSISTENT, *, floor: int = 0
    ) -> Extent:
        """The extent where the next frame of `length` bytes of this stream goes.

        Args:
            stream: who writes.
            length: frame bytes.
            before: the dependency the frame will be appended with.
            floor: free extents that must remain; more than the reserve's for user data.

        Raises:
            NoSpaceError: no extent has room and none may be taken.
        """
        assert length <= self.extent_bytes
        extent = self._current.get(stream)
        if extent is not None:
            tail, wanted = extent.tail, extent.declared
            if before is not PERSISTENT:
                wanted = before & wanted
            if (
                tail is not None
                and tail.before is not wanted
                and not (tail.before.is_persistent() and wanted.is_persistent())
            ):
                self.cut(extent)
            if extent.write_pointer + length <= self.extent_bytes:
                return extent
            self.seal(extent)
        extent = self._open_next(stream, floor)
        self._current[stream] = extent
        return extent

    def room(self, stream: Stream) -> int:
        """Bytes left in the stream's open extent."""
        extent = self._current.get(stream)
        return self.extent_bytes - extent.write_pointer if extent is not None else 0

    def append(
        self,
        extent: Extent,
        head: bytes,
        payload: Sequence[Buffer],
        length: int,
        before: Dependency = PERSISTENT,
    ) -> tuple[int, Dependency]:
        """Append one frame where `place` said.

        Args:
            extent: from `place`, called with the same `before` and no append in between.
            head: the frame's bytes before the payload.
            payload: must not change until written.
            length: frame bytes, alignment included.
            before: what must be persistent before the device sees it.

        Returns:
            The frame's offset within the extent, and its Dependency.
        """
        offset = extent.write_pointer
        assert offset + length <= self.extent_bytes, "the frame was placed elsewhere"
        tail = extent.tail
        if tail is None:
            wanted = extent.declared if before is PERSISTENT else before & extent.declared
            tail = extent.tail = Tail(offset, wanted)
        tail.buffers.append(head)
        tail.buffers.extend(payload)
        padding = length - len(head) - sum(map(len, payload))
        if padding:
            tail.buffers.append(bytes(padding))
        tail.frames.append(offset)
        self._unwritten[extent.index, offset] = payload
        extent.write_pointer = offset + length
        self._touched[extent.index] = None
        persistent = tail.persistent
        if extent.write_pointer - tail.start >= limits.WRITE_BYTES_TARGET:
            self.cut(extent)
        return offset, persistent

    def cut(self, extent: Extent) -> None:
        """Hand the extent's tail to the scheduler, padded to a whole block with zeros."""
        tail = extent.tail
        if tail is None:
            return
        extent.tail = None
        length = extent.write_pointer - tail.start
        padding = -length % limits.BLOCK_BYTES
        if padding:
            tail.buffers.append(bytes(padding))
            extent.write_pointer += padding
            self._touched[extent.index] = None
        extent.writes_pending += 1
        self.space.written_bytes[extent.stream] += length + padding

        def written() -> None:
            extent.writes_pending -= 1
            for offset in tail.frames:
                del self._unwritten[extent.index, offset]

        self._scheduler.submit(
            extent.index,
            self.identity.extent_offset(extent.index) + tail.start,
            tail.buffers,
            length + padding,
            tail.before,
            tail.persistent,
            written,
        )

    def cut_all(self) -> None:
        """Hand every tail to the scheduler."""
        for extent in self._current.values():
            if extent.tail is not None:
                self.cut(extent)

    def seal(self, extent: Extent) -> None:
        """Nothing more is appended to this extent before its next reset."""
        self.cut(extent)
        extent.state = ExtentState.SEALED
        self.note_sealed(extent)
        self._changed[extent.index] = None
        if self._current.get(extent.stream) is extent:
            del self._current[extent.stream]
        if extent in self._spares:
            self._spares.remove(extent)

    def ensure_spares(self) -> None:
        """Open the META stream's extents ahead, so that the next record declares them."""
        while len(self._spares) < limits.META_SPARE_EXTENTS and self._free:
            self._spares.append(self._allocate(Stream.META, 0))

    # --- reading ----------------------------------------------------------------------------

    def unwritten(self, extent: int, offset: int) -> Sequence[Buffer] | None:
        """The payload of a frame that the device does not have yet, or None."""
        return self._unwritten.get((extent, offset))

    @contextmanager
    def pinned(self, extent: int) -> Iterator[None]:
        """Keeps the extent from being reset while the body runs."""
        pinned = self.at(extent)
        pinned.pins += 1
        try:
            yield
        finally:
            pinned.pins -= 1

    async def read(self, extent: int, offset: int, length: int) -> bytes | memoryview:
        """Bytes of an extent as the device has them.

        Raises:
            DeviceError: the device could not read them.
            CorruptionError: there is no such extent.
        """
        pinned = self.at(extent)
        pinned.pins += 1  # as `pinned` does, without a context manager for each read
        try:
            return await self._device.read(self.identity.extent_offset(extent) + offset, length)
        finally:
            pinned.pins -= 1

    # --- records of the superblock ----------------------------------------------------------

    def take_changed(self) -> list[ExtentEntry]:
        """Entries for the next superblock record: changed extents and all open ones."""
        changed, self._changed = self._changed, {}
        for extent in (*self._current.values(), *self._spares):
            changed[extent.index] = None
        return [self.all[index].entry() for index in changed]

    @property
    def needs_declaring(self) -> bool:
        """True when an extent of the META stream waits for a record that nobody has begun."""
        return self._declared_by is self._superblock.next_record()

    # --- freeing ----------------------------------------------------------------------------

    async def release(self, extent: Extent) -> None:
        """Reset and discard on the device, then make the extent available.

        Requires: the superblock record that frees it is persistent.
        """
        offset = self.identity.extent_offset(extent.index)
        await self._device.reset(offset, self.extent_bytes)
        await self._device.discard(offset, self.extent_bytes)
        self._free.append(extent)
        self.released_count += 1

    def ready_user_bytes(self) -> int:
        """Bytes that user data may take right now, before anything is reclaimed."""
        ready = self.space.ready_extents(len(self._free))
        return ready * self.extent_bytes + self.room(Stream.DATA)

    # --- another size -----------------------------------------------------------------------

    def withhold(self, end: int) -> None:
        """Nothing more is written to extents with this number and higher ones (extent.I1)."""
        self._free.withhold(end, self.reserve)
        for extent in (*self._current.values(), *self._spares):
            if extent.index >= end:
                self.seal(extent)

    # --- extents to write to ----------------------------------------------------------------

    def _open_next(self, stream: Stream, floor: int) -> Extent:
        if stream is Stream.META and self._spares:
            return self._spares.popleft()
        return self._allocate(stream, floor)

    def _allocate(self, stream: Stream, floor: int) -> Extent:
        if len(self._free) <= floor:
            raise NoSpaceError(
                f"the device is full: {len(self._free)} extents are free, {floor} are reserved"
            )
        extent = self._free.popleft()
        extent.state = ExtentState.OPEN
        extent.stream = stream
        self.space.taken(stream)
        extent.order = next(self._sequence)
        extent.live_change = 0
        # Only the delta log is found through the superblock; other streams are found through
        # the deltas and runs that refer to them (I5).
        if stream is Stream.META:
            extent.declared = self._declared_by = self._superblock.next_record()
        else:
            extent.declared = PERSISTENT
        self._changed[extent.index] = None
        return extent
