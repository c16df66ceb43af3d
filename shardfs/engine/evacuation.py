"""Moves what is live out of extents that are mostly garbage, so that they can be reset.

Role: chooses the extents whose emptying costs least for what it gives, scans their frames, asks
the tree which of them are still referred to, and writes those again into another stream
(temperature.py), repointing their shards in batches. What lives longer is thereby kept apart from
new data, and is not moved again with it. Neighbours in a shard that move together become one chunk.

Sources: Rosenblum, Ousterhout, "The design and implementation of a log-structured file system",
1992, 3.6 (cost and benefit, survivors apart); Bornholt et al., SOSP 2021, 2.1 (chunk reclamation).

Invariants:
    I1. A chunk is given up only by the batch that refers to its copy: a chunk that cannot be
        read, or found, stays live, and its extent with it.
    I2. The copy is appended and referred to in one critical section, in which the shard is still
        what was read; a shard that has changed meanwhile is looked at again.
    I3. Copies are verified: rot is not moved under a fresh checksum.

Ordering: copies and batch -> commit -> the extent is dead (reclaim.py frees it). A power cut in
between leaves the shards at the old place, which is still there, or at the new one.

Not here: extents of runs and deltas (checkpoint.py empties those), when to evacuate
(reclamation.py), freeing (reclaim.py).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import trio

from shardfs import limits
from shardfs.engine.batch import Batch
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.extent import Extent
from shardfs.engine.extents import Extents
from shardfs.engine.framing import Frame, decode_head, head_bytes
from shardfs.engine.layout import FRAME_MAGIC, INCARNATION_SHIFT, Kind, Stream
from shardfs.engine.lsm.entry import decode_value
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.pacing import Slices
from shardfs.engine.pieces import Piece, Shard
from shardfs.engine.reserve import entry_bytes_per_batch
from shardfs.engine.shards import ShardData
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.temperature import Temperature
from shardfs.errors import CorruptionError, DeviceError, LimitError, NoSpaceError, StaleError

_log = logging.getLogger(__name__)

_BATCH_BYTES = 256 * limits.KIB
_BATCH_PIECES = 8
_SCAN_COST = 8
_PIECE_COST = 24
_COST_BYTES = 8 * limits.KIB
_ATTEMPTS_MAX = 8
_SCAN_BYTES = 64 * limits.KIB


class _Move(NamedTuple):
    """One shard, as read, and the bytes of some of its pieces that lie in the extent to be emptied;
    `is_all`: of all of them."""

    key: bytes
    shard: Shard
    copies: dict[int, bytes]
    is_all: bool
    entry_bytes: int
    """Length of its entry in the tree, which a batch writes again."""

    @property
    def bytes(self) -> int:
        """Bytes to be moved."""
        return sum(map(len, self.copies.values()))


class Evacuator:
    """Empties extents of one store.

    Args:
        extents, chunks, tree, shards, temperature: of the store.
        new_batch: an empty batch that may use the reserve.
        apply: makes a batch visible; Store.apply.
    """

    def __init__(
        self,
        extents: Extents,
        chunks: ChunkStore,
        tree: Tree,
        shards: ShardData,
        temperature: Temperature,
        new_batch: Callable[[], Batch],
        apply: Callable[[Batch], object],
    ) -> None:
        self._extents = extents
        self._chunks = chunks
        self._tree = tree
        self._shards = shards
        self._temperature = temperature
        self._new_batch = new_batch
        self._apply = apply
        self._entry_bytes_max = entry_bytes_per_batch(chunks.payload_bytes_max)
        self.slices = Slices()
        """How emptying gives way to others; whoever paces it sets this."""
        self.before_batch: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited before each batch, for the log to take it; whoever keeps that short sets this."""
        self.moved_bytes = 0
        """Bytes of data that were written again, since the open."""

    def candidates(self) -> list[Extent]:
        """The extents whose emptying gives more than it takes. Looks at all of them at once."""
        return [extent for extent in self._extents.sealed_data() if self._is_candidate(extent)]

    def _is_candidate(self, extent: Extent) -> bool:
        garbage_bytes = self._extents.extent_bytes - extent.live_bytes
        return (
            garbage_bytes >= self._extents.space.garbage_bytes_worth_moving
            and self._extents.may_be_emptied(extent)
            and not extent.is_stuck
        )

    async def choose(self) -> Extent | None:
        """The extent to empty next, or None if emptying any would give less than it takes.

        The benefit of an extent is its garbage, weighed by its age: what has not changed for long
        will not soon; its cost is reading it and writing what is live.

        Checkpoints: every slice; there may be tens of thousands of extents.
        """
        sealed = [each for stream in DATA_STREAMS for each in self._extents.sealed(stream)]
        sealed.sort(key=attrgetter("order"), reverse=True)
        best, best_score, age = None, 0.0, 0
        for extent in sealed:
            await self.slices.spend(1)
            if not self._is_candidate(extent):
                continue
            score = self._score(extent, age)
            age += 1
            if score > best_score:
                best, best_score = extent, score
        return best

    def _score(self, extent: Extent, age: int) -> float:
        live = extent.live_bytes / self._extents.extent_bytes
        return (1 - live) * (1 + age) / (1 + live)

    async def evacuate(self, extent: Extent) -> int:
        """Move everything live out of one extent; the bytes moved.

        What cannot be read stays where it is, and the extent is not chosen again in this life of
        it before the next open.

        Raises:
            NoSpaceError, ReadOnlyError: some of it may have been moved.
        """
        moved = 0
        with self._extents.pinned(extent.index):
            owners = await self.owners(extent)
            for _ in range(_ATTEMPTS_MAX):
                now = await self._empty(extent, owners)
                moved += now
                # A shard that was overwritten in part meanwhile may have more pieces than before.
                if not now or not extent.live_bytes:
                    break
        if extent.live_bytes:
            self._extents.set_stuck(extent)
            _log.warning(
                "extent %d keeps %d live bytes that can not be moved",
                extent.index,
                extent.live_bytes,
            )
        return moved

    async def _empty(self, extent: Extent, owners: Sequence[bytes]) -> int:
        """Move what these keys have in the extent; the bytes moved."""
        moved = 0
        moves: list[_Move] = []
        for key in owners:
            if not extent.live_bytes:
                break
            first = -1
            while (move := await self._read(extent, key)) is not None:
                if min(move.copies) <= first:
                    break  # the same again: it could not be moved
                first = min(move.copies)
                moves.append(move)
                if move.is_all and not self._is_batch(moves):
                    break
                moved += await self._place(extent, moves)
                moves = []
                # The rest of a large shard is looked at when its first pieces have moved.
                if move.is_all:
                    break
        return moved + await self._place(extent, moves)

    async def owners(self, extent: Extent) -> list[bytes]:
        """Keys that frames of data in the extent were written for; unreadable ones left out."""
        scan = _HeadScan(self._extents, extent)
        owners: dict[bytes, None] = {}
        while (frame := await scan.next()) is not None:
            if frame.kind is Kind.DATA:
                owners[frame.owner] = None
            await self.slices.spend(_SCAN_COST)
        return list(owners)

    async def _read(self, extent: Extent, key: bytes) -> _Move | None:
        """What a shard has in the extent, at most a batch of it, or None if nothing that can be
        read."""
        try:
            value = await self._tree.get(key)
            shard = None if value is None else decode_value(value, self._tree.generation)
            if value is None or not isinstance(shard, Shard):
                return None
            wanted = [piece for piece in shard.pieces if _lies_in(piece, extent)]
            copies: dict[int, bytes] = {}
            for piece in wanted[:_BATCH_PIECES]:
                await self.slices.spend(_PIECE_COST + piece.length // _COST_BYTES)
                data = await self._chunks.get(piece.locator, piece.skip, piece.length)
                copies[piece.start] = bytes(data)
        except (DeviceError, CorruptionError) as error:
            _log.warning("a chunk of extent %d stays where it is: %s", extent.index, error)
            return None
        is_all = len(copies) == len(wanted)
        return _Move(key, shard, copies, is_all, len(key) + len(value)) if copies else None

    def _is_batch(self, moves: Sequence[_Move]) -> bool:
        """Whether it is as much as one critical section may move, or one batch may bring."""
        return (
            sum(len(move.copies) for move in moves) >= _BATCH_PIECES
            or sum(move.bytes for move in moves) >= _BATCH_BYTES
            or sum(move.entry_bytes for move in moves) >= self._entry_bytes_max
        )

    async def _place(self, extent: Extent, moves: Sequence[_Move]) -> int:
        if not moves:
            return 0
        moved, waiting = 0, moves
        await self.before_batch()
        for _ in range(_ATTEMPTS_MAX):
            await trio.lowlevel.checkpoint()  # what was read before is a slice of its own
            changed = self._place_now(extent, waiting)
            placed = sum(move.bytes for move in waiting if move.key not in changed)
            moved += placed
            self.moved_bytes += placed
            await self.slices.spend(sum(_PIECE_COST * len(move.copies) for move in waiting))
            waiting = [again for key in changed if (again := await self._read(extent, key))]
            if not waiting:
                break
        return moved

    def _place_now(self, extent: Extent, moves: Sequence[_Move]) -> list[bytes]:
        """Write copies and repoint (I2); the keys of shards that are not what was read any more."""
        batch = self._new_batch()
        changed = []
        for move in moves:
            if not self._tree.is_current(move.key, move.shard, move.shard.generation):
                changed.append(move.key)
                continue
            try:
                pieces = tuple(self._moved_pieces(move, self._temperature.stream_for_moved(extent)))
                batch.put_shard(move.key, pieces, move.shard)
            except LimitError as error:
                _log.warning("a shard can not be moved: %s", error)
            except NoSpaceError:
                if len(batch):
                    self._apply(batch)  # the copies that fitted are not to be garbage
                raise
        if len(batch):
            try:
                self._apply(batch)
            except StaleError:  # impossible: nothing ran since each shard was found current
                raise AssertionError("a shard changed within a critical section") from None
        return changed

    def _moved_pieces(self, move: _Move, stream: Stream) -> Iterator[Piece]:
        joined: list[Piece] = []
        for piece in move.shard.pieces:
            if joined and (piece.start not in move.copies or piece.start != joined[-1].end):
                yield from self._append(move, joined, stream)
                joined = []
            if piece.start in move.copies:
                joined.append(piece)
            else:
                yield piece
        if joined:
            yield from self._append(move, joined, stream)

    def _append(self, move: _Move, joined: Sequence[Piece], stream: Stream) -> tuple[Piece, ...]:
        buffers = [move.copies[piece.start] for piece in joined]
        return self._shards.append_pieces(move.key, joined[0].start, buffers, stream=stream)


class _HeadScan:
    """The heads of an extent's frames, in order; what is damaged or unreadable is passed over.

    Args:
        extents: to read from.
        extent: that is scanned, up to its write pointer.
    """

    def __init__(self, extents: Extents, extent: Extent) -> None:
        self._extents = extents
        self._extent = extent
        self._store_id = extents.identity.store_id
        self._offset = 0
        self._window = b""
        self._start = 0

    async def next(self) -> Frame | None:
        """The next valid head of this life of the extent, or None at its end."""
        while self._offset < self._extent.write_pointer:
            if not await self._see(head_bytes(limits.KEY_BYTES_MAX, limits.CHUNK_BYTES_MAX)):
                continue
            try:
                frame = decode_head(
                    self._window, self._offset - self._start, store_id=self._store_id
                )
            except CorruptionError:
                self._resume()
                continue
            if frame.epoch == self._extent.epoch:
                self._offset = await self._behind(frame)
                return frame
            # Left over where a crash has lost a write: what it covered once may have been
            # written to since.
            self._resume()
        return None

    async def _behind(self, frame: Frame) -> int:
        """Where the scan goes on after a frame that begins at the offset.

        Behind it; unless a crash cut off what nothing referred to, and the store went on writing
        at the next whole block: then the frame's head is still there, and not what followed it.
        """
        end = self._offset + frame.total_bytes
        block = self._offset + limits.BLOCK_BYTES - self._offset % limits.BLOCK_BYTES
        if block >= min(end, self._extent.write_pointer):
            return end
        self._offset = block
        is_seen = await self._see(head_bytes(limits.KEY_BYTES_MAX, limits.CHUNK_BYTES_MAX))
        # Nearly always there is data: that is no error worth raising for each frame.
        if is_seen and self._window.startswith(FRAME_MAGIC, block - self._start):
            try:
                later = decode_head(self._window, block - self._start, store_id=self._store_id)
            except CorruptionError:
                return end
            life, later_life = (each.sequence >> INCARNATION_SHIFT for each in (frame, later))
            if later.epoch == frame.epoch and later_life > life:
                return block
        return end

    async def _see(self, length: int) -> bool:
        """Have that many bytes at the offset in sight, as far as there are; False if unreadable."""
        end = min(self._offset + length, self._extent.write_pointer)
        if self._start <= self._offset and end <= self._start + len(self._window):
            return True
        wanted = min(_SCAN_BYTES, self._extent.write_pointer - self._offset)
        try:
            found = await self._extents.read(self._extent.index, self._offset, wanted)
        except DeviceError as error:
            _log.warning("extent %d can not be scanned: %s", self._extent.index, error)
            self._offset += limits.BLOCK_BYTES - self._offset % limits.BLOCK_BYTES
            return False
        self._window, self._start = bytes(found), self._offset
        return True

    def _resume(self) -> None:
        """Go on where a frame may start next."""
        alignment = limits.FRAME_ALIGNMENT_BYTES
        at = self._offset - self._start + alignment
        while True:
            at = self._window.find(FRAME_MAGIC, at)
            if at < 0:
                end = self._start + len(self._window)
                self._offset = max(self._offset + alignment, end - end % alignment)
                return
            if (self._start + at) % alignment == 0:
                self._offset = self._start + at
                return
            at += 1


def _lies_in(piece: Piece, extent: Extent) -> bool:
    return piece.locator.extent == extent.index and piece.locator.epoch == extent.epoch
