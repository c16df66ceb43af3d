"""What is live: the bytes that a piece would take if it were written again.

Role: a chunk that has been overwritten in part is live in part. Each piece counts as the frame
that a copy of it would make, and so an extent as what emptying it would write. What nobody refers
to any more is garbage from the moment it is overwritten, wherever in a chunk it lies.

Invariants:
    I1. An extent counts nothing if, and only if, no piece refers to it: every piece counts its
        frame's head, however short it is.
    I2. A copy of a piece counts as much as the piece did; joined with its neighbours, no more.
    I3. What a change of a shard adds to each extent depends on the shard before and after it
        alone. So counts are exact, and a delta can carry them.

A chunk that many short pieces still refer to may count for more than it takes where it lies, by
the heads of those pieces. Nobody gains by moving it, so nobody does (evacuation.py).

Not here: keeping the counts (extents.py), and who changes a shard (batch.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from shardfs.engine.framing import frame_bytes
from shardfs.engine.layout import DAMAGED_EXTENT
from shardfs.engine.pieces import Piece

ExtentLife = tuple[int, int]
"""An extent between two resets: its number and its epoch."""


def piece_bytes(piece: Piece) -> int:
    """Bytes that a copy of the piece would take in an extent."""
    return frame_bytes(piece.locator.key_bytes, piece.length)


def live_bytes(pieces: Iterable[Piece]) -> dict[ExtentLife, int]:
    """What the pieces make live, by extent."""
    found: dict[ExtentLife, int] = {}
    for piece in pieces:
        life = piece.locator.extent, piece.locator.epoch
        if life[0] == DAMAGED_EXTENT:
            continue
        found[life] = found.get(life, 0) + piece_bytes(piece)
    return found


def live_changes(old: Sequence[Piece], new: Sequence[Piece]) -> Iterator[tuple[ExtentLife, int]]:
    """By how much each extent's live bytes change when a shard of the old pieces gets new ones."""
    if not old or not new:  # most files are written once and removed
        sign = 1 if new else -1
        for life, length in live_bytes(new or old).items():
            yield life, sign * length
        return
    start, ends = _alike(old, new)
    before = live_bytes(old[start : len(old) - ends])
    after = live_bytes(new[start : len(new) - ends])
    for life in before.keys() | after.keys():
        change = after.get(life, 0) - before.get(life, 0)
        if change:
            yield life, change


def _alike(old: Sequence[Piece], new: Sequence[Piece]) -> tuple[int, int]:
    """How many pieces at the start, and of the rest at the end, are the same ones in both."""
    shorter = min(len(old), len(new))
    start = 0
    while start < shorter and old[start] is new[start]:
        start += 1
    end = 0
    while end < shorter - start and old[-1 - end] is new[-1 - end]:
        end += 1
    return start, end
