"""Rewrites shards that lie scattered over the device, in the background.

Role: a shard that was written at random consists of many small pieces: reading it takes a device
read for each, its entry in the tree is long, and a large chunk of which little is left keeps its
place whole. Such shards are noticed when they are written or looked up; when one has been left
alone for a while, its small pieces are read and appended again as large chunks. Holes stay
holes, and pieces that are large stay where they are.

Each piece takes a little space of its own, a head and an entry. So before writers are told that
the device is full, those shards are gathered that have most pieces (`give_back`).

It is done here and not by the file system, because all it needs to know is in the shard: holes
and lengths stay as they are, so nothing else has to be changed with it, and those who use the
engine as a library have it too. The file system joins pieces only when it must (fuse/files.py).

Invariants:
    I1. As in evacuation.py: copies are appended and referred to in one critical section in which
        the shard is still what was read; they are verified; what cannot be read stays.
    I2. Nothing is rewritten while the device is short of space, unless that gives space back; nor
        if what it takes is not ready to be written: it never makes others wait for reclamation.
    I3. A shard that has changed within limits.SCATTERED_IDLE_S is left alone: it would soon be
        scattered again. At most limits.GATHERED_BYTES_PER_S are written.
    I4. What is remembered is bounded (limits.SCATTERED_SHARDS_MAX), and lost without harm.

Ordering: copies and batch -> commit -> the old pieces are dead. A power cut in between leaves the
shard with its old pieces, or with the new ones.

Not here: which stream takes the copies (temperature.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import trio

from shardfs import limits
from shardfs.engine.batch import Batch
from shardfs.engine.extents import Extents
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.pieces import Piece, Shard
from shardfs.engine.shards import ShardData
from shardfs.errors import CorruptionError, DeviceError, LimitError, NoSpaceError

_log = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0
_SPARE_EXTENTS = 2
_GIVEN_BACK_AT_ONCE = 4


class Gatherer:
    """Gathers the scattered shards of one store.

    Args:
        extents, tree, shards: of the store.
        new_batch: an empty batch, essential or not.
        apply: makes a batch visible; Store.apply.
    """

    def __init__(
        self,
        extents: Extents,
        tree: Tree,
        shards: ShardData,
        new_batch: Callable[..., Batch],
        apply: Callable[[Batch], object],
    ) -> None:
        self._extents = extents
        self._tree = tree
        self._shards = shards
        self._new_batch = new_batch
        self._apply = apply
        self._waiting: dict[bytes, float] = {}
        self._declined: dict[bytes, None] = {}
        self._piece_counts: dict[bytes, int] = {}
        self._giving_back = trio.Lock()
        self.gathered_shards = 0
        self.gathered_bytes = 0

    @property
    def waiting_shards(self) -> int:
        """Shards noticed, and not looked at yet."""
        return len(self._waiting)

    def changed(self, batch: Batch) -> None:
        """A batch has been applied."""
        for key, count in batch.piece_counts.items():
            self._declined.pop(key, None)
            self._waiting.pop(key, None)
            self._piece_counts.pop(key, None)
            if count >= limits.SCATTERED_PIECES_MIN:
                self._note(key, count)

    def seen(self, key: bytes, shard: Shard) -> None:
        """A shard has been looked up."""
        if (
            len(shard.pieces) >= limits.SCATTERED_PIECES_MIN
            and key not in self._waiting
            and key not in self._declined
        ):
            self._note(key, len(shard.pieces))

    async def run(self) -> None:
        """Gather what has been left alone, for ever, slowly."""
        while True:
            written = await self.gather()
            await trio.sleep(max(_LOOK_INTERVAL_S, written / limits.GATHERED_BYTES_PER_S))

    async def gather(self, *, idle_s: float = limits.SCATTERED_IDLE_S) -> int:
        """Rewrite one shard that has not changed for `idle_s` seconds; bytes written, 0 if there
        is none, or no room."""
        while (key := self._next(idle_s)) is not None and self._has_room_for(0):
            del self._waiting[key]
            try:
                written = await self._gather(key)
            except (DeviceError, CorruptionError, LimitError, NoSpaceError) as error:
                _log.info("the shard %s stays scattered: %s", key.hex(), error)
                written = 0
            if written:
                return written
            if key in self._waiting:
                return 0  # it has changed meanwhile
            self._declined[key] = None
            _bound(self._declined)
        return 0

    async def give_back(self, wanted_bytes: int) -> int:
        """Rewrite a few of the most scattered shards until so much is free; the bytes rewritten.

        Only what saves a piece for each limits.SCATTERED_BYTES_PER_PIECE is rewritten, and only
        shards that were changed or looked up since the open are known.
        """
        space = self._extents.space
        written = 0
        async with self._giving_back:
            for _ in range(_GIVEN_BACK_AT_ONCE):
                if space.user_bytes() >= wanted_bytes or not self._piece_counts:
                    break
                key = max(self._piece_counts, key=self._piece_counts.__getitem__)
                count = self._piece_counts.pop(key)  # it comes back when it changes
                try:
                    written += await self._gather(key, for_space=True)
                except NoSpaceError:
                    self._piece_counts.setdefault(key, count)
                    break
                except (DeviceError, CorruptionError, LimitError) as error:
                    _log.info("the shard %s keeps its pieces: %s", key.hex(), error)
        return written

    def _note(self, key: bytes, piece_count: int) -> None:
        self._waiting[key] = trio.current_time()
        self._piece_counts[key] = piece_count
        _bound(self._waiting)
        _bound(self._piece_counts)

    def _next(self, idle_s: float) -> bytes | None:
        """The key of the shard that has been waiting longest, if that is long enough."""
        for key, since in self._waiting.items():
            return key if since + idle_s <= trio.current_time() else None
        return None

    def _has_room_for(self, length: int, *, for_space: bool = False) -> bool:
        if for_space:
            return self._extents.ready_user_bytes() >= length
        wanted = length + _SPARE_EXTENTS * self._extents.extent_bytes
        return not self._extents.space.is_short and self._extents.ready_user_bytes() >= wanted

    async def _gather(self, key: bytes, *, for_space: bool = False) -> int:
        shard = await self._tree.get_value(key)
        if not isinstance(shard, Shard):
            return 0
        per_piece = (
            limits.SCATTERED_BYTES_PER_PIECE if for_space else limits.SCATTERED_BYTES_PER_READ
        )
        groups = groups_worth_joining(shard.pieces, self._shards.chunk_bytes_max, per_piece)
        length = sum(group[-1].end - group[0].start for group in groups)
        if not groups or not self._has_room_for(length, for_space=for_space):
            if groups and for_space:
                raise NoSpaceError(f"{length} bytes are not ready")
            return 0
        copies = {}
        for group in groups:
            start = group[0].start
            copies[start] = await self._shards.read(group, start, group[-1].end - start)
        # No await from here on (I1).
        is_current = self._tree.is_current(key, shard, shard.generation)
        if not is_current or not self._has_room_for(length, for_space=for_space):
            return 0
        batch = self._new_batch(essential=for_space)
        batch.put_shard(key, tuple(self._joined(key, shard, groups, copies)), shard)
        self._apply(batch)
        self.gathered_shards += 1
        self.gathered_bytes += length
        return length

    def _joined(
        self,
        key: bytes,
        shard: Shard,
        groups: Sequence[Sequence[Piece]],
        copies: dict[int, bytes],
    ) -> Iterator[Piece]:
        replaced = {piece.start for group in groups for piece in group}
        for piece in shard.pieces:
            if piece.start in copies:
                yield from self._shards.append_pieces(key, piece.start, (copies[piece.start],))
            elif piece.start not in replaced:
                yield piece


def groups_worth_joining(
    pieces: Sequence[Piece],
    chunk_bytes_max: int,
    bytes_per_piece: int = limits.SCATTERED_BYTES_PER_READ,
) -> list[tuple[Piece, ...]]:
    """Neighbours that would better be one chunk; empty if rewriting them costs more than it gives.

    At most limits.SHARD_BYTES are proposed at a time.

    Args:
        pieces: of one shard.
        chunk_bytes_max: larger ones cannot be made.
        bytes_per_piece: a piece saved is worth rewriting so much.
    """
    chosen: list[tuple[Piece, ...]] = []
    saved = total = 0
    for group in _neighbours(pieces, chunk_bytes_max // 2):
        length = group[-1].end - group[0].start
        fewer = len(group) - -(-length // chunk_bytes_max)
        if fewer > 0 and total + length <= limits.SHARD_BYTES:
            chosen.append(group)
            saved, total = saved + fewer, total + length
    is_worth_it = saved >= limits.SCATTERED_PIECES_MIN // 2 and saved * bytes_per_piece >= total
    return chosen if is_worth_it else []


def _neighbours(pieces: Sequence[Piece], small_bytes_max: int) -> Iterator[tuple[Piece, ...]]:
    """Small pieces with no hole and no large piece between them."""
    group: list[Piece] = []
    for piece in pieces:
        is_small = piece.length <= small_bytes_max
        if group and not (is_small and piece.start == group[-1].end):
            yield tuple(group)
            group = []
        if is_small:
            group.append(piece)
    if group:
        yield tuple(group)


def _bound(remembered: dict[bytes, float] | dict[bytes, int] | dict[bytes, None]) -> None:
    while len(remembered) > limits.SCATTERED_SHARDS_MAX:
        del remembered[next(iter(remembered))]
