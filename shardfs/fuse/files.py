"""Byte ranges of files as shards, shards as chunks: storing, truncating.

Role: the content of files as the store has it. A file's shard i holds its bytes from
i * SHARD_BYTES; what no piece covers is a hole and reads as zeros.

Invariants:
    I1. Data and the size that lets it be seen are in one batch (`store_runs`, `truncate`).
    I2. No shard has bytes at or above the inode's size, except shards wholly above it while the
        file is marked with a truncation key; `finish_truncation` ends that state.
    I3. inode.used is the sum of the lengths of the file's pieces.
    I4. Memory and batch size do not depend on a file's size; time depends on its existing shards.
    I5. A shard's record stays below RECORD_BYTES_MAX: scattered shards are rewritten (`gather`).
    I6. Separate stretches that `takes_stretches` lets be buffered fit into their shard's record,
        also where there is no space to fill the holes between them.
    I7. What a file takes beside its data is at most a part of the data, however it was written:
        limits.SCATTERED_SPACE_SHARE of each shard, or what SCATTERED_PIECES_MIN pieces take.

Ordering: a truncation marks the file in the batch that cuts its size, and the mark goes in the
batch that deletes the last shard.

Not here: reading (file_reads.py), dirty data (writeback.py), freeing (freeing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.pieces import Piece, Shard, encoded_bytes, overlapped, splice, truncate
from shardfs.engine.reserve import record_bytes_max
from shardfs.errors import StaleError
from shardfs.fuse.dirty import Run
from shardfs.fuse.door import StoreDoor, scan_some
from shardfs.fuse.file_reads import FileReads
from shardfs.fuse.keys import (
    TRUNCATION_PREFIX,
    decode_file_key,
    decode_marker_key,
    shard_key,
    shards_end,
    truncation_key,
)
from shardfs.fuse.records import Inode
from shardfs.fuse.tables import Tables

SHARD_BYTES: Final = limits.SHARD_BYTES
_GAP_BYTES_FILLED: Final = 4 * limits.KIB
_RUN_BYTES_IN_RECORD: Final = 128
_STRETCHES_FEW_MAX: Final = 64
_SHARDS_REMEMBERED: Final = 4096
RUNS_PER_STEP: Final = 32
"""Separate stretches of a shard that are one batch; what that means: docs/crash-consistency.md."""


class Files:
    """The durable content of one store's files. Create with `open`."""

    def __init__(self, store: StoreDoor, tables: Tables, truncations: set[int]) -> None:
        self.store = store
        self.read = FileReads(store).read
        self.tables = tables
        self.truncations = truncations
        """Files with shards above their end (I2)."""
        self._finishing = trio.Lock()
        self._record_bytes_max = record_bytes_max(store.identity.chunk_bytes_max)
        self.stretches_few = min(
            _STRETCHES_FEW_MAX, self._record_bytes_max // _RUN_BYTES_IN_RECORD // 4
        )
        """So many more fit into any record, however the shard came to be as it is (I6)."""
        self.stretches_left: dict[tuple[int, int], int] = {}
        """How many more may be buffered, of shards of which that is known, by inode and index."""

    @classmethod
    async def open(cls, store: StoreDoor, tables: Tables) -> Files:
        """The files of a store, knowing which truncations a crash has interrupted."""
        truncations = set()
        async for key, _ in store.scan(TRUNCATION_PREFIX, bytes([TRUNCATION_PREFIX[0] + 1])):
            truncations.add(decode_marker_key(key))
        return cls(store, tables, truncations)

    # --- writing

    def store_runs(
        self,
        ino: int,
        index: int,
        base: Shard | None,
        runs: Sequence[Run],
        amend: Callable[[Inode], Inode],
    ) -> None:
        """Write runs of bytes into a shard, with the inode's new size, in one batch.

        Args:
            base: the shard as loaded; see `has_room_for`.
            runs: disjoint, ascending, at least one.
            amend: gives the inode its new times.

        Durable when: the store is synced.

        Raises:
            NotLoaded, StaleError, ReadOnlyError, NoSpaceError: nothing was changed.
        """
        change = self.tables.change()
        inode = change.find_inode(ino)
        assert inode is not None and inode.is_regular, f"data for inode {ino}: {inode}"
        key = shard_key(ino, index)
        pieces = base.pieces if base is not None else ()
        used = inode.used - _used_bytes(pieces)
        for run in runs:
            pieces = self._append(key, pieces, run)
        end = index * SHARD_BYTES + runs[-1].start + runs[-1].length
        if len(pieces) > self.stretches_few or (ino, index) in self.stretches_left:
            self._remember_stretches_left(ino, index, pieces)
        change.batch.put_shard(key, pieces, base)
        inode = amend(inode)
        change.put_inode(
            ino,
            inode.with_content(
                *(max(inode.size, end), used + _used_bytes(pieces)),
                *(inode.mtime_ns, inode.ctime_ns),
            ),
        )
        change.commit()

    def has_room_for(self, shard: Shard | None, run_count: int) -> bool:
        """Whether a shard can take that many more runs without `gather` (I5, I7)."""
        if shard is None or len(shard.pieces) < limits.SCATTERED_PIECES_MIN:
            return True
        return (
            len(shard.pieces) + 2 * run_count <= limits.PIECES_PER_SHARD_MAX
            and 2 * encoded_bytes(shard.pieces) <= self._record_bytes_max
            and not self._is_wasteful(shard.pieces)
        )

    def _is_wasteful(self, pieces: Sequence[Piece]) -> bool:
        """Whether pieces that `gather` would save take too much for the data that they hold."""
        used = _used_bytes(pieces)
        least = len(_stretches(pieces, 0)) + used // self.store.identity.chunk_bytes_max
        allowed = used // limits.SCATTERED_SPACE_SHARE // limits.PIECE_SPACE_BYTES
        return len(pieces) - least > max(allowed, limits.SCATTERED_PIECES_MIN)

    def fits(self, shard: Shard | None, run_count: int) -> bool:
        """Whether the record of a shard can take that many more runs, though no more after them."""
        added = _RUN_BYTES_IN_RECORD * run_count
        return shard is None or encoded_bytes(shard.pieces) + added <= self._record_bytes_max

    def takes_stretches(self, ino: int, index: int, count: int) -> bool:
        """Whether so many separate stretches of a shard may be buffered (I6), as far as is known;
        if not, `look_for_room` may tell otherwise. Who buffers them tells `note_stretches`."""
        return count <= self.stretches_left.get((ino, index), self.stretches_few)

    def note_stretches(self, ino: int, index: int, count: int) -> None:
        """So many separate stretches of a shard are buffered."""
        if count >= self.stretches_few and (ino, index) not in self.stretches_left:
            self._remember(ino, index, self.stretches_few)

    async def look_for_room(self, ino: int, index: int) -> None:
        """Find out how many separate stretches of a shard may be buffered.

        Raises:
            DeviceError, CorruptionError
        """
        shard = await self.store.get_shard(shard_key(ino, index))
        self._remember_stretches_left(ino, index, shard.pieces if shard is not None else ())

    def _remember_stretches_left(self, ino: int, index: int, pieces: Sequence[Piece]) -> None:
        # What is not remembered for ever has to fit as well, and so has the last step of a flush.
        spare = self.stretches_few + RUNS_PER_STEP
        left = (self._record_bytes_max - encoded_bytes(pieces)) // _RUN_BYTES_IN_RECORD - spare
        self._remember(ino, index, left)

    def _remember(self, ino: int, index: int, left: int) -> None:
        self.stretches_left.pop((ino, index), None)
        self.stretches_left[ino, index] = left
        if len(self.stretches_left) > _SHARDS_REMEMBERED:
            del self.stretches_left[next(iter(self.stretches_left))]

    async def gather(self, ino: int, index: int) -> None:
        """Rewrite a scattered shard in fewer pieces, if that makes many fewer of them.

        Holes stay holes where the record allows, and where there is no space to fill them.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError
        """
        key = shard_key(ino, index)
        while True:
            shard = await self.store.get_shard(key)
            if shard is None:
                return
            stretches = self._stretches_to_write(shard.pieces)
            if not stretches:
                return
            await self.store.admit(_length(stretches))
            # Reclamation, waited for, may have moved it.
            shard = await self.store.get_shard(key)
            stretches = self._stretches_to_write(shard.pieces) if shard is not None else []
            if shard is None or not stretches:
                return
            runs = []
            for start, end in stretches:
                data = await self.read(ino, index * SHARD_BYTES + start, end - start)
                runs.append(Run(start, end - start, [data]))
            try:
                await self.tables.run(partial(self._replace_shard, ino, key, shard, runs))
            except StaleError:
                continue
            return

    def _stretches_to_write(self, pieces: Sequence[Piece]) -> list[tuple[int, int]]:
        """What becomes one run each: with the holes between them filled if there is space for
        that, else as they are; nothing if that would save too few pieces."""
        stretches = _stretches(pieces, _GAP_BYTES_FILLED)
        if 2 * len(stretches) > limits.PIECES_PER_SHARD_MAX:
            stretches = _stretches(pieces, SHARD_BYTES)
        if self._has_space_to_grow(pieces, stretches):
            return stretches
        stretches = _stretches(pieces, 0)
        chunk_bytes_max = self.store.identity.chunk_bytes_max
        count = sum([-(-(end - start) // chunk_bytes_max) for start, end in stretches])
        is_worth_it = 2 * count <= len(pieces) or self._is_wasteful(pieces)
        return stretches if is_worth_it else []

    def _has_space_to_grow(
        self, pieces: Sequence[Piece], stretches: Sequence[tuple[int, int]]
    ) -> bool:
        """Filled holes take what is free and not set aside: it is owed to what is buffered."""
        return _length(stretches) - _used_bytes(pieces) <= self.store.space().free_bytes

    def _replace_shard(self, ino: int, key: bytes, base: Shard, runs: Sequence[Run]) -> None:
        change = self.tables.change()
        inode = change.find_inode(ino)
        if inode is None:
            return  # freed meanwhile
        stretches = [(run.start, run.start + run.length) for run in runs]
        if not self._has_space_to_grow(base.pieces, stretches):
            raise StaleError("the space to fill holes has gone meanwhile")
        pieces: tuple[Piece, ...] = ()
        for run in runs:
            pieces = self._append(key, pieces, run)
        used = inode.used + _used_bytes(pieces) - _used_bytes(base.pieces)
        change.batch.put_shard(key, pieces, base)
        change.put_inode(ino, inode._replace(used=used))
        change.commit()

    def _append(self, key: bytes, pieces: tuple[Piece, ...], run: Run) -> tuple[Piece, ...]:
        """The pieces with a run put over them."""
        replaced = overlapped(pieces, run.start, run.length)
        for piece in self.store.append_pieces(key, run.start, run.buffers, replaced=replaced):
            pieces = splice(pieces, piece.start, piece.locator, piece.length)
        return pieces

    # --- truncating

    async def truncate(
        self,
        ino: int,
        length: int,
        amend: Callable[[Inode], Inode],
        *,
        committed: Callable[[], None],
    ) -> None:
        """Set a file's size; what is beyond it is gone, what is added is a hole.

        Requires: the caller keeps others from changing the file's content meanwhile.

        Args:
            length: the new size, bytes.
            amend: gives the inode its new times and mode.
            committed: called as soon as the file has its new size, before anything else runs.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError
        """
        await self.finish_truncation(ino)
        index = length // SHARD_BYTES
        while True:
            inode = await self.tables.inode(ino)
            assert inode is not None
            doomed: list[tuple[bytes, Shard]] = []
            if length < inode.size:
                doomed = await self._shards_from(shard_key(ino, index), ino)
            try:
                await self.tables.run(partial(self._truncate_now, ino, length, doomed, amend))
            except StaleError:
                continue
            committed()
            break
        await self.finish_truncation(ino)

    def _truncate_now(
        self,
        ino: int,
        length: int,
        doomed: Sequence[tuple[bytes, Shard]],
        amend: Callable[[Inode], Inode],
    ) -> None:
        change = self.tables.change()
        inode = change.find_inode(ino)
        assert inode is not None
        freed = 0
        for key, shard in doomed:
            index = decode_file_key(key).shard
            assert index is not None
            pieces = truncate(shard.pieces, max(0, length - index * SHARD_BYTES))
            freed += _used_bytes(shard.pieces) - _used_bytes(pieces)
            if not pieces:
                change.batch.delete_shard(key, shard)
            elif pieces is not shard.pieces:
                change.batch.put_shard(key, pieces, shard)
        change.put_inode(ino, amend(inode)._replace(size=length, used=inode.used - freed))
        more = len(doomed) == limits.SHARDS_PER_BATCH_MAX
        if more:
            change.batch.put(truncation_key(ino), b"")
        change.commit()
        if more:
            self.truncations.add(ino)

    async def finish_truncation(self, ino: int) -> None:
        """Delete what an earlier truncation left above the end of the file.

        Checkpoints: only when there is something to delete.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError
        """
        if ino not in self.truncations:
            return
        async with self._finishing:
            inode = await self.tables.inode(ino)
            if inode is None:
                self.truncations.discard(ino)
                return
            start = shard_key(ino, -(-inode.size // SHARD_BYTES))
            while ino in self.truncations:
                doomed = await self._shards_from(start, ino)
                try:
                    await self.tables.run(partial(self._drop_shards, ino, doomed))
                except StaleError:
                    continue
                if doomed:
                    start = doomed[-1][0]
                await self.store.admit()

    def _drop_shards(self, ino: int, doomed: Sequence[tuple[bytes, Shard]]) -> None:
        change = self.tables.change()
        inode = change.find_inode(ino)
        assert inode is not None
        for key, shard in doomed:
            change.batch.delete_shard(key, shard)
        freed = sum(_used_bytes(shard.pieces) for _, shard in doomed)
        change.put_inode(ino, inode._replace(used=inode.used - freed))
        last = len(doomed) < limits.SHARDS_PER_BATCH_MAX
        if last:
            change.batch.delete(truncation_key(ino))
        change.commit()
        if last:
            self.truncations.discard(ino)

    async def _shards_from(self, start: bytes, ino: int) -> list[tuple[bytes, Shard]]:
        items = await scan_some(self.store, start, shards_end(ino), limits.SHARDS_PER_BATCH_MAX)
        return [(key, value) for key, value in items if isinstance(value, Shard)]


def _used_bytes(pieces: Sequence[Piece]) -> int:
    return sum([piece.length for piece in pieces])


def _length(stretches: Sequence[tuple[int, int]]) -> int:
    return sum([end - start for start, end in stretches])


def _stretches(pieces: Sequence[Piece], gap_bytes: int) -> list[tuple[int, int]]:
    """(start, end) of what the pieces cover, gaps of up to `gap_bytes` counted as covered."""
    stretches: list[tuple[int, int]] = []
    for piece in pieces:
        if stretches and piece.start - stretches[-1][1] <= gap_bytes:
            stretches[-1] = (stretches[-1][0], piece.end)
        else:
            stretches.append((piece.start, piece.end))
    return stretches
