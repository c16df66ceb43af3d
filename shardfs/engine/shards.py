"""Data of shards: appending it as chunks, and reading it back across pieces.

Role: cuts data into chunks that fill extents to their end, and joins pieces and holes to bytes.

Invariants:
    I1. Data is appended and referenced in one critical section: until the batch that refers to
        it is applied, nothing else runs, so that reclamation cannot see it unreferenced.
    I2. While a shard is read its extents are pinned: no reset comes between two pieces.
    I3. No chunk of data that is cut reaches over a multiple of the largest chunk's length: large
        reads begin and end there, and so are one read of the device, or two at an extent's end.

Not here: which pieces a shard has (the tree), who may append (store.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from shardfs import limits
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.dependency import Dependency
from shardfs.engine.device import Buffer
from shardfs.engine.extents import Extents
from shardfs.engine.layout import DAMAGED_EXTENT, Kind, Stream
from shardfs.engine.pieces import Locator, Piece
from shardfs.errors import NoSpaceError

_NO_EXTENTS: Final = frozenset({DAMAGED_EXTENT})
_APPENDED_MAX: Final = 1024
"""When so many chunks wait for a batch, those that nobody needs to know of are let go of."""


class ShardData:
    """Chunks that hold the data of shards.

    Args:
        chunks, extents: of the store.
    """

    def __init__(self, chunks: ChunkStore, extents: Extents) -> None:
        self._chunks = chunks
        self._extents = extents
        self._appended: dict[int, Dependency] = {}
        """Chunks that no batch has referred to yet, by sequence number; some of them settled."""
        self._appended_max = _APPENDED_MAX

    def append(
        self,
        owner: bytes,
        offset: int,
        buffers: Sequence[Buffer],
        *,
        stream: Stream = Stream.DATA,
    ) -> Locator:
        """Write one chunk, to be referenced by a batch in the same critical section.

        Args:
            owner: key of the shard it belongs to.
            offset: where in the shard its first byte goes.
            buffers: gathered; must not change any more. At most Identity.chunk_bytes_max.
            stream: see temperature.py; SURVIVORS may take what others must leave.

        Raises:
            NoSpaceError: the device is full to the last reserve.
        """
        locator, persistent = self._chunks.put(
            Kind.DATA, stream, owner, offset, buffers, floor=self._floor(stream)
        )
        appended = self._appended
        appended[locator.sequence] = persistent
        if len(appended) >= self._appended_max:
            self._forget_settled()
        return locator

    def append_pieces(
        self,
        owner: bytes,
        offset: int,
        buffers: Sequence[Buffer],
        *,
        stream: Stream = Stream.DATA,
    ) -> tuple[Piece, ...]:
        """Write data of any length; as `append`.

        Returns:
            Pieces that cover [offset, offset + total length) of the shard.

        Raises:
            NoSpaceError: as `append`; what clearly does not fit is not begun, as a part of it would
                be garbage at once, in the last room that is ready.
        """
        total = sum(map(len, buffers))
        room = self._chunks.payload_room(stream, len(owner))
        if total > room:  # more than the open extent takes
            self._require_room(total, stream)
            room = self._payload_room(owner, stream)
        if 0 < total <= room:
            locator = self.append(owner, offset, buffers, stream=stream)
            return (Piece(offset, total, 0, locator),)
        pieces = []
        for at, part, length in _cut(buffers, offset, partial(self._cut_room, owner, stream)):
            locator = self.append(owner, at, part, stream=stream)
            pieces.append(Piece(at, length, 0, locator))
        return tuple(pieces)

    @property
    def chunk_bytes_max(self) -> int:
        """Length of the largest chunk."""
        return self._chunks.payload_bytes_max

    def take_appended(self, locator: Locator) -> Dependency | None:
        """When the chunk is persistent, if it is not yet and no batch has referred to it."""
        persistent = self._appended.pop(locator.sequence, None)
        return None if persistent is None or persistent.settled else persistent

    @contextmanager
    def pinned(self, pieces: Sequence[Piece]) -> Iterator[None]:
        """Keeps the chunks of these pieces from being reclaimed while the body runs."""
        with ExitStack() as stack:
            for extent in {piece.locator.extent for piece in pieces} - _NO_EXTENTS:
                stack.enter_context(self._extents.pinned(extent))
            yield

    def are_there(self, pieces: Sequence[Piece]) -> bool:
        """Whether none of the extents that held these pieces has been given back."""
        extents = self._extents.all
        for piece in pieces:
            number = piece.locator.extent
            if number in _NO_EXTENTS:
                continue
            if number >= len(extents) or extents[number].epoch != piece.locator.epoch:
                return False
        return True

    async def read(self, pieces: Sequence[Piece], start: int, length: int) -> bytes:
        """Bytes [start, start+length) of a shard; holes and what lies behind it are zeros.

        Raises:
            DeviceError, CorruptionError: they cannot be read as they were written.
        """
        end = start + length
        parts: list[Buffer] = []
        at = start
        with self.pinned(pieces):
            for piece in pieces:
                first, last = max(start, piece.start), min(end, piece.end)
                if first >= last:
                    continue
                if first > at:
                    parts.append(bytes(first - at))
                skip = piece.skip + first - piece.start
                parts.append(await self._chunks.get(piece.locator, skip, last - first))
                at = last
        if end > at:
            parts.append(bytes(end - at))
        return b"".join(parts)

    def _floor(self, stream: Stream) -> int:
        """Free extents that writing to the stream must leave."""
        return 0 if stream is Stream.SURVIVORS else self._extents.reserve // 2

    def _require_room(self, length: int, stream: Stream) -> None:
        extents = self._extents
        ready = max(0, extents.free_count - self._floor(stream)) * extents.extent_bytes
        ready += extents.room(stream)
        if length > ready:
            raise NoSpaceError(f"the device is full: {ready} bytes are ready, not {length}")

    def _forget_settled(self) -> None:
        """Of chunks whose batch was not applied nothing is left to know once they are settled."""
        pending = {at: each for at, each in self._appended.items() if not each.settled}
        self._appended = pending
        self._appended_max = max(_APPENDED_MAX, 2 * len(pending))

    def _cut_room(self, owner: bytes, stream: Stream, offset: int) -> int:
        """The same for what is cut at `offset` (I3), in whole granules: blocks of a file that is
        cut stay granules of its chunks."""
        room = self._payload_room(owner, stream)
        room -= room % limits.GRANULE_BYTES
        return min(room, self.chunk_bytes_max - offset % self.chunk_bytes_max)

    def _payload_room(self, owner: bytes, stream: Stream) -> int:
        room = self._chunks.payload_room(stream, len(owner))
        if room >= self._extents.space.room_worth_fitting:
            return room
        return self._chunks.payload_bytes_max


def _cut(
    buffers: Sequence[Buffer], offset: int, room: Callable[[int], int]
) -> Iterator[tuple[int, list[Buffer], int]]:
    """Buffers as successive parts (offset, buffers, length), each at most as long as `room` said
    for its offset when it was begun."""
    part: list[Buffer] = []
    length, limit = 0, room(offset)
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            taken = view[: limit - length]
            part.append(buffer if len(taken) == len(buffer) else taken)
            length += len(taken)
            view = view[len(taken) :]
            if length == limit:
                yield offset, part, length
                offset += length
                part, length, limit = [], 0, room(offset)
    if part:
        yield offset, part, length
