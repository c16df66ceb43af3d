"""How much user data the device may take: now, and once all garbage is reclaimed.

Role: counts the extents that each stream holds and the bytes of data that are live, and says how
many more bytes of data fit.

Invariants:
    I1. `user_bytes` depends on what is live, not on where it lies or what garbage there is. So
        the same data fit after any history, and a full device has room again for what is deleted.
        The exception is garbage beside something that could not be read, and so not be moved.
    I2. While live data keep within `user_bytes`, there is always an extent whose emptying gives
        more than it takes, or a free one: an extent counts only as far as reclamation fills it.
    I3. Data take none of the extents that the reserve and the tree are still owed.

The shares: the reserve is for the delta log, for open extents and for reclamation to move things
to. The tree has twice its size, what is still in memory included: what is there, and the same
again for its garbage or a merge.

Not here: who may take the last extents (extents.py), making room (reclamation.py, merging.py).
"""

from __future__ import annotations

from collections import Counter, deque

from shardfs import limits
from shardfs.engine.layout import Stream

DATA_STREAMS = (Stream.DATA, Stream.SURVIVORS, Stream.HOT)
_SHORT_OF_SPACE_SHARE = 8
_ROOM_WORTH_FITTING = 16 * limits.KIB
_ROOM_WORTH_FITTING_SHARE = 16
_GARBAGE_WORTH_MOVING_SHARE = 16
_HOT_LIVES_KEPT = 16
_RUNS_ROOM_LOST_MAX = 64 * limits.KIB
_RUNS_ROOM_LOST_SHARE = 8
_OVERDRAFT_MARGIN = 1.5
"""Of the tree's share of two; at a bit over one nothing could be merged (regression test 056)."""
MERGE_FLOOR_EXTENTS = 2
"""Extents that merging leaves: the delta log may need them meanwhile."""


class SpaceAccount:
    """The account of one store.

    Args:
        extent_count, extent_bytes: of the device, the superblock's included.
        reserve: extents that user data may not take.
    """

    def __init__(self, extent_count: int, extent_bytes: int, reserve: int) -> None:
        self._extent_count = extent_count
        self._extent_bytes = extent_bytes
        self._reserve = reserve
        lost = min(_RUNS_ROOM_LOST_MAX, extent_bytes // _RUNS_ROOM_LOST_SHARE)
        self._run_bytes_per_extent = extent_bytes - lost
        """What an extent of runs holds: none is full."""
        self._data_bytes_per_extent = (
            extent_bytes - self._packing_loss_bytes - self.garbage_bytes_worth_moving
        )
        self._shared_bytes = -1
        """What the two below were computed for: bytes of the tree, those in memory included."""
        self._tree_share_bytes = 0
        self._room_bytes = 0
        """What data may take in all; see user_bytes_with."""
        self._held: Counter[Stream] = Counter()
        self._live_bytes = 0
        self.tree_bytes = 0
        """Bytes of the runs."""
        self.memory_bytes = 0
        """Bytes that what is only in memory will take as runs."""
        self.reserved_bytes = 0
        """Set aside for data that will be appended later."""
        self.stuck_bytes = 0
        """Lost in extents that cannot be emptied, besides what is live there."""
        self.written_bytes: Counter[Stream] = Counter()
        """Handed to the device since the open, padding included."""
        self.hot_lives: deque[int] = deque(maxlen=_HOT_LIVES_KEPT)
        """How long extents of the stream HOT lived lately, in sequence numbers."""

    def taken(self, stream: Stream) -> None:
        """A stream holds one more extent."""
        self._held[stream] += 1

    def given_back(self, stream: Stream, life: int) -> None:
        """A stream holds one extent less, which it opened so many sequence numbers ago."""
        self._held[stream] -= 1
        if stream is Stream.HOT:
            self.hot_lives.append(life)

    def held_extents(self, stream: Stream) -> int:
        """Extents that a stream holds."""
        return self._held[stream]

    def live_changed(self, stream: Stream, change_bytes: int) -> None:
        """So many more bytes are live in an extent of the stream, or fewer."""
        if stream in DATA_STREAMS:
            self._live_bytes += change_bytes

    def resize(self, extent_count: int, reserve: int) -> None:
        """The device has so many extents from now on, `reserve` of which user data may not take."""
        self._extent_count = extent_count
        self._reserve = reserve
        self._shared_bytes = -1

    @property
    def room_worth_fitting(self) -> int:
        """Less room than this at an extent's end is left unused rather than filled by a chunk."""
        return min(_ROOM_WORTH_FITTING, self._extent_bytes // _ROOM_WORTH_FITTING_SHARE)

    @property
    def garbage_bytes_worth_moving(self) -> int:
        """An extent with less garbage gives too little for what emptying it costs."""
        return self._extent_bytes // _GARBAGE_WORTH_MOVING_SHARE + self._packing_loss_bytes

    @property
    def _packing_loss_bytes(self) -> int:
        """At most this much of a full extent of data is neither live nor garbage."""
        return self.room_worth_fitting + limits.KEY_BYTES_MAX

    @property
    def tree_share_bytes(self) -> int:
        """What is kept for the tree, what it holds included."""
        if self.tree_bytes + self.memory_bytes != self._shared_bytes:
            self._share()
        return self._tree_share_bytes

    def _share(self) -> None:
        """Compute what is asked for several times in each request."""
        held = self._shared_bytes = self.tree_bytes + self.memory_bytes
        # An extent is owed from the start: what is free shall not fall with the first entry.
        in_runs = held * self._extent_bytes // self._run_bytes_per_extent  # as `_in_runs`
        self._tree_share_bytes = max(self._extent_bytes, 2 * in_runs)
        self._room_bytes = self._room_with(self._extent_count, self._reserve)

    @property
    def _merge_extents(self) -> int:
        """Extents that writing the memory as a run and merging everything takes."""
        return -(-self._in_runs(self.tree_bytes + 2 * self.memory_bytes) // self._extent_bytes)

    def _in_runs(self, tree_bytes: int) -> int:
        """Bytes of extents that so many bytes of frames of the tree take: no extent is full."""
        return tree_bytes * self._extent_bytes // self._run_bytes_per_extent

    def lacks_room_to_merge(self, free_extents: int) -> bool:
        """With so many extents free, the tree has to be merged into one run now: not much later
        there would be no room for it, and what is deleted would only make it larger."""
        return free_extents < self._merge_extents + self._reserve // 2 - 1

    def has_room_for_runs(self, run_bytes: int, free_extents: int) -> bool:
        """With so many extents free, merging may write that many bytes."""
        wanted = -(-self._in_runs(run_bytes) // self._extent_bytes)
        return wanted + MERGE_FLOOR_EXTENTS <= free_extents

    @property
    def is_short(self) -> bool:
        """Less than a part of the device is left for user data."""
        return self.user_bytes() < self.total_bytes // _SHORT_OF_SPACE_SHARE

    @property
    def total_bytes(self) -> int:
        """Size of all extents."""
        return self._extent_count * self._extent_bytes

    @property
    def unreserved_bytes(self) -> int:
        """Size of what user data and the tree share: of a small device, much less than all."""
        return self._unreserved_with(self._extent_count, self._reserve)

    def user_bytes(self) -> int:
        """Bytes that user data may still take, frame overhead included, once all garbage that can
        be reclaimed has been (I1)."""
        if self.tree_bytes + self.memory_bytes != self._shared_bytes:
            self._share()
        left = self._room_bytes - self._live_bytes - self.stuck_bytes
        return left if left > 0 else 0

    @property
    def is_overdrawn(self) -> bool:
        """The tree has grown so far beyond its share that it must not be made any larger, by those
        who may use the reserve either: it could not be merged any more, and nothing be deleted."""
        room = self._unreserved_with(self._extent_count, self._reserve)
        data = self._live_bytes + self.stuck_bytes + self.reserved_bytes
        data_extents_bytes = data * self._extent_bytes // self._data_bytes_per_extent
        in_runs = self._in_runs(self.tree_bytes + self.memory_bytes)
        return in_runs * _OVERDRAFT_MARGIN + data_extents_bytes > room

    def user_bytes_with(self, extent_count: int, reserve: int) -> int:
        """The same for a device with so many extents; less than 0 if it would be too small."""
        if self.tree_bytes + self.memory_bytes != self._shared_bytes:
            self._share()
        return self._room_with(extent_count, reserve) - self._live_bytes - self.stuck_bytes

    def lost_around(self, live_bytes: int) -> int:
        """What users lose with an extent that cannot be emptied, and of which so much is live."""
        return max(0, self._data_bytes_per_extent - live_bytes)

    def _room_with(self, extent_count: int, reserve: int) -> int:
        room = self._unreserved_with(extent_count, reserve) - self._tree_share_bytes
        return room * self._data_bytes_per_extent // self._extent_bytes

    def _unreserved_with(self, extent_count: int, reserve: int) -> int:
        return (extent_count - limits.SUPERBLOCK_EXTENTS - reserve) * self._extent_bytes

    def ready_extents(self, free_extents: int) -> int:
        """Of the free extents, those that user data may take right now (I3).

        What the log already holds of its share is not kept free as well; half of the reserve
        always is, for reclamation to move things to. The tree keeps the room to be merged.
        """
        log = max(self._reserve // 2, self._reserve - self._held[Stream.META])
        tree = self._merge_extents
        return max(0, free_extents - log - tree)
