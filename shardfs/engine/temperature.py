"""Hot and cold data apart: which stream takes what is written, and what is moved.

Role: an extent gives most back for being emptied when all of it has died, so data that will die
at about the same time should lie together. How long data will live is guessed from how long it,
or what stood in its place, has lived so far. There are three streams, a ladder:

    HOT        takes the place of what was itself written a short while ago
    DATA       is new, or takes the place of something older; and what was moved out of HOT
    SURVIVORS  has been moved out of DATA, or again out of SURVIVORS

A short while is what extents of HOT have lived on average, from being opened to being freed. Age
is counted in frames written: the sequence number in a locator tells it, nothing else is stored.

Source: Wang et al., "Separating data via block invalidation time inference for write
amplification reduction in log-structured storage", FAST 2022 (SepBIT), with fewer classes: what
that gains and what more would gain is in docs/performance.md.

Invariants:
    I1. Where data goes never decides whether it can be written: on a device that is short of
        space HOT gets no more extents, and the one it has is filled with whatever comes.
    I2. What an earlier open has written counts as old.

Not here: which extent is emptied (evacuation.py), when (reclamation.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from shardfs import limits
from shardfs.engine.extent import Extent
from shardfs.engine.extents import Extents
from shardfs.engine.framing import head_bytes
from shardfs.engine.layout import Stream
from shardfs.engine.pieces import Piece

_LADDER = (Stream.SURVIVORS, Stream.DATA, Stream.HOT)
_SHORT_SHARE = 32
_SHORT_EXTENTS = 4
_FRAMES_BYTES = 2 * head_bytes(limits.KEY_BYTES_MAX, limits.CHUNK_BYTES_MAX)
"""What the frames of one piece of data take beside it, at most."""


class Temperature:
    """Chooses streams for one store.

    Args:
        extents: of the store.
    """

    def __init__(self, extents: Extents) -> None:
        self._extents = extents
        self._opened_at = extents.tick()

    def stream_for_new(self, replaced: Sequence[Piece], length: int) -> Stream:
        """Where new data goes.

        Args:
            replaced: what it takes the place of; empty if there was nothing.
            length: bytes of it.
        """
        extents, space = self._extents, self._extents.space
        least = max(space.total_bytes // _SHORT_SHARE, _SHORT_EXTENTS * extents.extent_bytes)
        is_short = space.user_bytes() < least
        if not (replaced or is_short) and extents.free_count > extents.reserve:  # as most is
            return Stream.DATA
        fits = extents.room(Stream.HOT) >= length + length // 64 + _FRAMES_BYTES
        if is_short or not (fits or extents.free_count > extents.reserve):
            return Stream.HOT if fits else Stream.DATA
        if not replaced:
            return Stream.DATA
        born_after = extents.tick() - self._hot_age
        for piece in replaced:
            if piece.is_damaged:
                continue
            at = piece.locator
            if at.sequence < born_after or extents.at(at.extent).stream is Stream.SURVIVORS:
                return Stream.DATA
        return Stream.HOT

    def stream_for_moved(self, extent: Extent) -> Stream:
        """Where what is live in an extent that is being emptied goes."""
        if extent.stream is Stream.HOT and self._extents.free_count > self._extents.reserve:
            return Stream.DATA
        if not self._extents.free_count:
            # What is left in any open extent may be the room that makes more (I1).
            return max(_LADDER, key=self._extents.room)
        return Stream.SURVIVORS

    @property
    def _hot_age(self) -> int:
        """Frames written since; what is older is not hot."""
        since_open = self._extents.tick() - self._opened_at
        # An extent that an earlier open has begun says nothing (I2): numbers leap at each open.
        lives = [life for life in self._extents.space.hot_lives if life <= since_open]
        return sum(lives) // len(lives) if lives else since_open
