"""What is known of every extent: its state, its live bytes, and which are free.

Role: the table that extents.py appends by, and the account of which bytes something refers to. What
has changed in it is kept for the records that make it durable: states for the superblock, live
bytes for the deltas and the manifest.

Invariants:
    I1. An extent is dead only when nothing refers to it any more *persistently*: its live bytes
        are zero, the delta that dropped the last reference is durable, nobody reads it, and
        nothing of it waits to be written.
    I2. An extent that is marked free has an epoch that it has never had, and is not among the
        free ones until it is released.
    I3. The live bytes of an extent are those of the frames in it that batches refer to: no more,
        no fewer, and never below zero.
    I4. Nothing that is done while the store is in use looks at every extent: there may be tens of
        thousands. Sealed extents are kept by stream, those without live bytes apart; live bytes
        and epochs in columns besides, of which a snapshot is a copy.

Not here: writing to extents, resetting them (extents.py); who is live (applying.py counts); what an
extent is (extent.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice

from shardfs import limits
from shardfs.engine.extent import Extent, FreeExtents, TailFields, UsageSnapshot
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.space import DATA_STREAMS, SpaceAccount
from shardfs.engine.superblock_record import ExtentEntry
from shardfs.errors import CorruptionError

_STATES = {int(state): state for state in ExtentState}
_STREAMS = {int(stream): stream for stream in Stream}


class ExtentTable:
    """All extents of one store, as they are known in memory.

    Args:
        extent_count: extents there are.
        extent_bytes: size of each.
        sequence: gives rising numbers.
        reserve: free extents that user data may not take.
    """

    def __init__(
        self, extent_count: int, extent_bytes: int, sequence: Iterator[int], reserve: int
    ) -> None:
        self._sequence = sequence
        self.reserve = reserve
        self.extent_bytes = extent_bytes
        self.space = SpaceAccount(extent_count, extent_bytes, reserve)
        self.all = [Extent(index) for index in range(extent_count)]
        for extent in self.all[: limits.SUPERBLOCK_EXTENTS]:
            extent.state = ExtentState.SUPERBLOCK
        self._free = FreeExtents()
        self._changed: dict[int, None] = {}
        self._touched: dict[int, None] = {}
        self._sealed: dict[Stream, dict[int, Extent]] = {stream: {} for stream in Stream}
        self._lifeless: dict[int, Extent] = {}
        """Sealed extents without live bytes."""
        self._live_column = array("Q", bytes(8 * extent_count))
        """Live bytes of data, by extent; 0 for extents of other streams."""
        self._epoch_column = array("Q")

    def restore(self, entries: Iterable[ExtentEntry]) -> None:
        """Take over recorded states. Requires: nothing has been placed yet."""
        for entry in entries:
            extent = self.at(entry.extent)
            extent.state = _STATES[entry.state]
            extent.stream = _STREAMS[entry.stream]
            extent.epoch = entry.epoch
            extent.write_pointer = entry.write_pointer
            extent.order = entry.order

    def index_states(self) -> None:
        """Recovery has said how each extent stands: from here on nothing looks at all of them."""
        self._live_column = array("Q", bytes(8 * len(self.all)))
        self._epoch_column = array("Q", [extent.epoch for extent in self.all])
        sealed = []
        for extent in self.all:
            if extent.stream in DATA_STREAMS:
                self._live_column[extent.index] = extent.live_bytes
            if extent.state is ExtentState.SEALED:
                sealed.append(extent)
        for extent in sorted(sealed, key=lambda each: each.order):
            self.note_sealed(extent)

    def note_sealed(self, extent: Extent) -> None:
        """The extent has been sealed."""
        self._sealed[extent.stream][extent.index] = extent
        if not extent.live_bytes:
            self._lifeless[extent.index] = extent

    def sealed(self, stream: Stream) -> list[Extent]:
        """The sealed extents of one stream, in the order in which they were sealed."""
        return list(self._sealed[stream].values())

    def at(self, number: int) -> Extent:
        """The extent of this number, as something on the device names it.

        Raises:
            CorruptionError: there is no such extent.
        """
        if number >= len(self.all):
            raise CorruptionError(f"extent {number} is named, and there are {len(self.all)}")
        return self.all[number]

    def tick(self) -> int:
        """A number above all sequence numbers and orders so far: the time, in frames written."""
        return next(self._sequence)

    # --- live bytes -------------------------------------------------------------------------

    def credit(self, extent: int, length: int) -> None:
        """`length` more bytes of the extent are referenced."""
        state = self.all[extent] if extent < len(self.all) else self.at(extent)
        state.live_bytes += length
        state.live_change += length
        self._live_changed(state, length)

    def debit(self, extent: int, epoch: int, length: int, delta: int = 0) -> None:
        """`length` bytes are referenced no more, once delta number `delta` is durable."""
        state = self.at(extent)
        assert state.epoch == epoch, f"extent {extent} was reset while referenced"
        assert state.live_bytes >= length, f"extent {extent} would have negative live bytes"
        state.live_bytes -= length
        state.live_change -= length
        self._live_changed(state, -length)
        state.last_delta = max(state.last_delta, delta)
        if not state.live_bytes and state.state is ExtentState.SEALED:
            self._lifeless[extent] = state

    def set_stuck(self, extent: Extent, *, is_stuck: bool = True) -> None:
        """What lives in the extent cannot be moved out of it (space.I1)."""
        extent.is_stuck = is_stuck
        is_lost = is_stuck and extent.stream in DATA_STREAMS
        lost = self.space.lost_around(extent.live_bytes) if is_lost else 0
        self.space.stuck_bytes += lost - extent.lost_bytes
        extent.lost_bytes = lost

    def _live_changed(self, extent: Extent, change_bytes: int) -> None:
        if extent.is_stuck:
            self.set_stuck(extent)
        if extent.stream in DATA_STREAMS:
            self._live_column[extent.index] += change_bytes
        self.space.live_changed(extent.stream, change_bytes)
        self._touched[extent.index] = None

    def take_touched(self) -> list[TailFields]:
        """Extents appended to, credited or debited since the last call, as `lsm.delta.Tail` has
        them; of runs without the change, which manifests tell.

        Runs where nothing else may, over nearly all extents at times: plain tuples in one loop take
        a fifth of what named ones take (0.06 ms for 900).
        """
        touched, self._touched = self._touched, {}
        extents = self.all
        tails: list[TailFields] = []
        for index in touched:
            extent = extents[index]
            stream = extent.stream
            if stream is not Stream.META and stream is not Stream.NONE:
                change = extent.live_change if stream is not Stream.RUNS else 0
                tails.append((index, extent.epoch, extent.write_pointer, stream, change))
            extent.live_change = 0
        return tails

    def usage(self) -> UsageSnapshot:
        """Live bytes of the extents that hold data, as of now."""
        return UsageSnapshot(self._live_column[:], self._epoch_column[:])

    # --- states -----------------------------------------------------------------------------

    @property
    def has_changed(self) -> bool:
        """True when a superblock record is due for the sake of the extents."""
        return bool(self._changed)

    def entries(self) -> list[ExtentEntry]:
        """Entries of all extents, for a snapshot."""
        return [extent.entry() for extent in self.all]

    def dead(
        self, durable_delta: int, checkpoint: int, log_extent: int, *, count_max: int | None = None
    ) -> list[Extent]:
        """Sealed extents that nothing persistent refers to (I1).

        Args:
            durable_delta: deltas up to this number are durable; what they dropped is gone.
            checkpoint: deltas up to this number are in runs; their own frames are not needed.
            log_extent: where reading the delta log starts; never dead.
            count_max: no more than so many are wanted.
        """
        dead = (
            extent
            for extent in self._lifeless.values()
            if extent.live_bytes == 0  # it may have been credited since it was sealed
            and extent.index != log_extent
            and extent.last_delta <= (checkpoint if extent.stream is Stream.META else durable_delta)
            and extent.pins == 0
            and extent.writes_pending == 0
        )
        return list(islice(dead, count_max))

    def mark_free(self, extent: Extent) -> None:
        """Raise the epoch and have the next record free it; not to be reused before `release`."""
        self.set_stuck(extent, is_stuck=False)
        self.space.given_back(extent.stream, self.tick() - extent.order)
        self._sealed[extent.stream].pop(extent.index, None)
        self._lifeless.pop(extent.index, None)
        extent.state = ExtentState.FREE
        extent.stream = Stream.NONE
        extent.epoch += 1
        self._epoch_column[extent.index] = extent.epoch
        extent.write_pointer = 0
        extent.last_delta = 0
        self._changed[extent.index] = None

    @property
    def free(self) -> FreeExtents:
        """The extents that can be handed out (extents.I4)."""
        return self._free

    @property
    def free_count(self) -> int:
        """Extents that can be handed out, the reserve included."""
        return len(self._free)

    @property
    def free_bytes(self) -> int:
        """Bytes of the extents that can be handed out, the reserve included."""
        return len(self._free) * self.extent_bytes

    def sealed_data(self) -> list[Extent]:
        """Extents of data, partly live, to which nothing is added any more and nothing waits to
        be written."""
        return [
            extent
            for stream in DATA_STREAMS
            for extent in self._sealed[stream].values()
            if self.may_be_emptied(extent)
        ]

    def may_be_emptied(self, extent: Extent) -> bool:
        """A sealed extent of data has something live, and nothing that waits to be written."""
        return bool(
            extent.live_bytes and not extent.writes_pending and not self._free.is_behind_end(extent)
        )

    @property
    def has_pinned_garbage(self) -> bool:
        """Something that nobody refers to any more is still being read."""
        return any(extent.pins and not extent.live_bytes for extent in self._lifeless.values())

    # --- another size -----------------------------------------------------------------------

    def lengthen(self, extent_count: int) -> list[Extent]:
        """Have so many extents; the new ones, free, and not to be handed out before `release`.

        Their epoch is one that no extent has had: what was written there before an earlier end of
        the device means nothing.
        """
        epoch = 1 + max(extent.epoch for extent in self.all)
        new = [Extent(index, epoch=epoch) for index in range(len(self.all), extent_count)]
        self.all += new
        self._live_column.extend(0 for _ in new)
        self._epoch_column.extend(epoch for _ in new)
        return new

    def shorten(self, extent_count: int) -> None:
        """Have only so many extents.

        Requires: the others are free, withheld, and named neither by the manifest nor by the delta
        log. The first extent, whose own frames have none, keeps the highest epoch of theirs.
        """
        rest = self.all[extent_count:]
        assert self._free.withheld_count == len(rest), "something is still there"
        del self.all[extent_count:]
        self.all[0].epoch = max(each.epoch for each in (self.all[0], *rest))
        del self._live_column[extent_count:], self._epoch_column[extent_count:]
        self._epoch_column[0] = self.all[0].epoch
        for extent in rest:
            self._changed.pop(extent.index, None)
            self._touched.pop(extent.index, None)
        self._free.forget()
