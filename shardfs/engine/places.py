"""Says of any byte of the device what it is: whose data, part of which structure, or garbage.

Role: the way back from an address. The tree decides what is live: a frame that nothing refers to
is garbage, and a piece whose frame is damaged keeps its bytes. A friend of the store: it looks at
its parts.

Invariants:
    I1. Every byte is in one place, and places that follow each other leave none out.
    I2. A byte is "data" of a shard exactly if a piece of the shard has it, so that this is the
        inverse of the way from a shard's pieces to the device.
    I3. Nothing is changed. Asking for places in rising order reads each extent once.

Not here: files and their names (fuse/map_requests.py), why an extent is not free (occupancy.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Final, NamedTuple

from shardfs import limits
from shardfs.engine.chunks import locator_bytes, payload_offset
from shardfs.engine.extent import Extent
from shardfs.engine.frame_walk import FrameWalk, Span, SpanKind
from shardfs.engine.framing import Frame
from shardfs.engine.layout import ExtentState, Kind, Stream
from shardfs.engine.pacing import Slices
from shardfs.engine.pieces import Locator, Piece, Shard
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, UsageError

_KEY_END: Final = b"\xff" * (limits.KEY_BYTES_MAX + 1)


class PlaceKind(StrEnum):
    """What a part of the device is."""

    DATA = "data"
    HEAD = "head"
    """Header, owner key and digests of a frame of data that is referred to."""
    TREE = "tree"
    LOG = "log"
    SUPERBLOCK = "superblock"
    GARBAGE = "garbage"
    PADDING = "padding"
    UNWRITTEN = "unwritten"
    FREE = "free"
    UNKNOWN = "unknown"
    """Something cannot be read that would tell."""
    OUTSIDE = "outside"
    """Behind the last extent."""


class Place(NamedTuple):
    """Bytes [start, end) of the device.

    text: what they are, for people.
    extent: which one they are in; None behind the last.
    frame: where their frame starts on the device, if they are part of one.
    key, shard_start: whose data they are, and from which byte of the shard on.
    """

    start: int
    end: int
    kind: PlaceKind
    text: str
    extent: int | None = None
    frame: int | None = None
    key: bytes | None = None
    shard_start: int | None = None


class _Reference(NamedTuple):
    """Bytes [start, end) of an extent are bytes of a shard from `shard_start` on."""

    start: int
    end: int
    key: bytes
    shard_start: int


class _Walk(NamedTuple):
    """A walk through one extent that is under way."""

    life: tuple[int, int, int]
    spans: AsyncGenerator[Span, None]


class Places:
    """The places of one open store.

    Args:
        store: open, for reading at least. What is not yet on the device is not seen.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._extents = store._extents
        self._slices = Slices()
        self._walk: _Walk | None = None
        self._span: Span | None = None
        self._record_sequence = -1
        self._all_references: tuple[tuple[int, int, int], list[_Reference]] | None = None

    async def aclose(self) -> None:
        """Ends a walk that is under way."""
        if self._walk is not None:
            walk, self._walk = self._walk, None
            await walk.spans.aclose()

    async def at(self, offset: int) -> Place:
        """The place of a byte of the device.

        Raises:
            UsageError: the device is not that long.
            DeviceError, CorruptionError: the tree cannot be read.
        """
        size_bytes = self._store._parts.device.size_bytes
        identity = self._store.identity
        if not 0 <= offset < size_bytes:
            raise UsageError(f"there is no byte {offset}: the device has {size_bytes}")
        number, inside = divmod(offset, identity.extent_bytes)
        if number >= len(self._extents.all):
            start = len(self._extents.all) * identity.extent_bytes
            text = "behind the last extent, not used"
            return Place(start, size_bytes, PlaceKind.OUTSIDE, text)
        extent = self._extents.all[number]
        with self._extents.pinned(number):
            start, end, place = await self._place(extent, inside)
        base = identity.extent_offset(number)
        frame = None if place.frame is None else base + place.frame
        return place._replace(start=base + start, end=base + end, extent=number, frame=frame)

    async def _place(self, extent: Extent, at: int) -> tuple[int, int, Place]:
        """Start and end within the extent, and what is there."""
        if extent.state is ExtentState.FREE:
            return 0, self._extents.extent_bytes, _place(PlaceKind.FREE, "free")
        if extent.state is not ExtentState.SUPERBLOCK and at >= extent.write_pointer:
            text = f"not written since the extent was opened; {_name(extent)}"
            end = self._extents.extent_bytes
            return extent.write_pointer, end, _place(PlaceKind.UNWRITTEN, text)
        span = await self._span_of(extent, at)
        if extent.state is ExtentState.SUPERBLOCK:
            return span.start, span.end, self._superblock_place(extent, span)
        if extent.stream is Stream.META:
            return span.start, span.end, self._log_place(extent, span)
        if extent.stream is Stream.RUNS:
            return self._tree_place(extent, span, at)
        return await self._data_place(extent, span, at)

    # --- spans --------------------------------------------------------------------------------

    async def _span_of(self, extent: Extent, at: int) -> Span:
        life = (extent.index, extent.epoch, extent.write_pointer)
        span = self._span
        if self._walk is None or self._walk.life != life or span is None or span.start > at:
            await self.aclose()
            self._walk = _Walk(life, self._spans(extent))
            self._record_sequence = -1
            span = None
        while span is None or span.end <= at:
            span = await anext(self._walk.spans)
            if extent.state is ExtentState.SUPERBLOCK and self._is_next_record(span):
                assert span.frame is not None
                self._record_sequence = span.frame.sequence
        self._span = span
        return span

    def _spans(self, extent: Extent) -> AsyncGenerator[Span, None]:
        is_superblock = extent.state is ExtentState.SUPERBLOCK

        async def read(offset: int, length: int) -> bytes | memoryview:
            return await self._extents.read(extent.index, offset, length)

        walk = FrameWalk(
            read,
            self._extents.extent_bytes if is_superblock else extent.write_pointer,
            store_id=self._store.identity.store_id,
            epoch=None if is_superblock else extent.epoch,
        )
        return walk.spans(self._slices)

    # --- superblock, log, tree ----------------------------------------------------------------

    def _is_next_record(self, span: Span) -> bool:
        """The span goes on the superblock log that the walk has read so far."""
        frame = span.frame
        return (
            span.kind is SpanKind.FRAME
            and frame is not None
            and frame.kind is Kind.SUPERBLOCK
            and frame.sequence >= self._record_sequence
        )

    def _superblock_place(self, extent: Extent, span: Span) -> Place:
        copy = ("first", "second")[extent.index]
        if self._is_next_record(span) and span.frame is not None:
            text = f"record {span.frame.owner_offset} of the {copy} superblock copy"
            return _place(PlaceKind.SUPERBLOCK, text, span)
        if span.kind is SpanKind.ZEROS:
            return _place(PlaceKind.PADDING, f"zeros in the extent of the {copy} superblock copy")
        text = f"left by an earlier log of the {copy} superblock copy"
        return _place(PlaceKind.GARBAGE, text, span)

    def _log_place(self, extent: Extent, span: Span) -> Place:
        root = self._store._committer.root
        frame = span.frame
        if span.kind is not SpanKind.FRAME or frame is None or frame.kind is not Kind.DELTA:
            return _rest(span)
        number = frame.owner_offset
        if number > root.checkpoint:
            return _place(PlaceKind.LOG, f"delta {number} of the delta log", span)
        text = f"delta {number}, which runs hold (checkpoint {root.checkpoint})"
        return _place(PlaceKind.GARBAGE, text, span)

    def _tree_place(self, extent: Extent, span: Span, at: int) -> tuple[int, int, Place]:
        """By what the tree refers to; a frame that nothing names is garbage."""
        live = self._tree_chunks(extent)
        start, end = span.start, span.end
        for locator, text in live:
            first, last = locator.offset, locator.offset + locator_bytes(locator)
            if first <= at < last:
                is_there = span.frame is not None and span.frame.sequence == locator.sequence
                text = text if is_there else f"{text}; damaged"
                return first, last, Place(0, 0, PlaceKind.TREE, text, frame=first)
            start = max(start, last) if last <= at else start
            end = min(end, first) if first > at else end
        return start, end, _rest(span)

    def _tree_chunks(self, extent: Extent) -> list[tuple[Locator, str]]:
        found = []
        for run in self._store._tree.runs:
            name = f"run {run.run_id} (level {run.level})"
            for segment in run.segments:
                index = segment.meta.index_locator
                found += [(each, f"a block of {name}") for each in segment.index.blocks]
                found.append((index, f"a run index of {name}"))
        manifest = self._store._committer.root.manifest
        if manifest is not None:
            found.append((manifest, "the manifest"))
        return [each for each in found if each[0].extent == extent.index]

    # --- data ---------------------------------------------------------------------------------

    async def _data_place(self, extent: Extent, span: Span, at: int) -> tuple[int, int, Place]:
        assert extent.stream in DATA_STREAMS
        frame = span.frame
        if span.kind is not SpanKind.FRAME or frame is None or frame.kind is not Kind.DATA:
            is_padding = span.kind is SpanKind.ZEROS and span.end - span.start < limits.BLOCK_BYTES
            try:
                references = [] if is_padding else await self._references(extent)
            except CorruptionError as error:
                return span.start, span.end, _unknown(span, error)
            return _among(references, span.start, span.end, at, _rest(span))
        try:
            references = await self._references_of(extent, span, frame)
        except CorruptionError as error:
            return span.start, span.end, _unknown(span, error)
        if at < span.payload_start:
            kind = PlaceKind.HEAD if references else PlaceKind.GARBAGE
            text = "header, owner key and digests of a frame of data"
            text += "" if references else " that nothing refers to"
            return span.start, span.payload_start, _place(kind, text, span, frame.owner)
        payload_end = min(span.end, span.payload_start + frame.payload_bytes)
        if at >= payload_end:
            return payload_end, span.end, _place(PlaceKind.PADDING, "zeros behind a frame", span)
        rest = "was overwritten" if references else "nothing refers to it any more"
        rest_place = _place(PlaceKind.GARBAGE, f"data that {rest}", span, frame.owner)
        if not references:
            rest_place = rest_place._replace(text=f"data: {rest}")
        return _among(references, span.payload_start, payload_end, at, rest_place)

    async def _references_of(self, extent: Extent, span: Span, frame: Frame) -> list[_Reference]:
        """What refers to one frame, in order of the payload."""
        value = await self._store._load(frame.owner)
        found = _pieces_in(value, frame.owner, extent)
        first, last = span.start, span.start + frame.total_bytes
        return sorted(each for each in found if first <= each.start < last)

    async def _references(self, extent: Extent) -> list[_Reference]:
        """All that refers to an extent, whatever its frames say. Looks through the whole tree."""
        life = (extent.index, extent.epoch, extent.write_pointer)
        if self._all_references is None or self._all_references[0] != life:
            found: list[_Reference] = []
            async for key, value in self._store.scan(b"", _KEY_END):
                found += _pieces_in(value, key, extent)
                await self._slices.spend(1)
            self._all_references = (life, sorted(found))
        return self._all_references[1]


def _pieces_in(value: bytes | Shard | None, key: bytes, extent: Extent) -> list[_Reference]:
    if not isinstance(value, Shard):
        return []
    return [
        reference_of(piece, key)
        for piece in value.pieces
        if (piece.locator.extent, piece.locator.epoch) == (extent.index, extent.epoch)
    ]


def reference_of(piece: Piece, key: bytes) -> _Reference:
    """Where a piece of a shard lies in its extent."""
    start = payload_offset(piece.locator) + piece.skip
    return _Reference(start, start + piece.length, key, piece.start)


def _among(
    references: list[_Reference], start: int, end: int, at: int, rest: Place
) -> tuple[int, int, Place]:
    """The reference that has byte `at`; else the part of [start, end) around it that none has."""
    number = bisect_right(references, at, key=lambda each: each.start)
    if number and references[number - 1].end > at:
        found = references[number - 1]
        place = Place(0, 0, PlaceKind.DATA, "data", None, rest.frame, found.key, found.shard_start)
        return found.start, found.end, place
    if number:
        start = max(start, references[number - 1].end)
    if number < len(references):
        end = min(end, references[number].start)
    return start, end, rest


def _rest(span: Span) -> Place:
    """What nothing refers to, by its bytes alone."""
    if span.kind is SpanKind.ZEROS:
        return _place(PlaceKind.PADDING, "zeros between frames")
    if span.kind is SpanKind.UNREADABLE:
        return _place(PlaceKind.UNKNOWN, "the device cannot read it")
    if span.frame is None:
        return _place(PlaceKind.GARBAGE, "no frame, and nothing refers to it")
    name = span.frame.kind.name
    if span.kind is SpanKind.STALE:
        text = f"a frame of kind {name} from before the extent was reset"
        return _place(PlaceKind.GARBAGE, text, span)
    return _place(PlaceKind.GARBAGE, f"a frame of kind {name} that nothing refers to", span)


def _place(kind: PlaceKind, text: str, span: Span | None = None, key: bytes | None = None) -> Place:
    frame = span.start if span is not None and span.frame is not None else None
    return Place(0, 0, kind, text, None, frame, key)


def _unknown(span: Span, error: CorruptionError) -> Place:
    text = f"what refers to it cannot be read: {error}"
    return _place(PlaceKind.UNKNOWN, text, span)


def _name(extent: Extent) -> str:
    return f"the extent is {extent.state.name.lower()}, stream {extent.stream.name.lower()}"
