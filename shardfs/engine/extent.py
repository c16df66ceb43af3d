"""One extent as it is known in memory, and the queue of those that are free.

Role: the state that extent_table.py keeps for each extent. An extent that is free is handed out in
the order in which extents became free, unless it is withheld.

Invariants:
    I1. A withheld extent is not handed out: while a store is made smaller, what is free beyond
        its new end stays so, but for a few extents where nearly nothing is free before it.

Not here: when the state changes (extents.py), making a store smaller (shrinking.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from shardfs.engine.dependency import PERSISTENT, Dependency
from shardfs.engine.device import Buffer
from shardfs.engine.layout import USAGE, ExtentState, Stream
from shardfs.engine.pacing import Slices
from shardfs.engine.superblock_record import ExtentEntry

TailFields: TypeAlias = tuple[int, int, int, int, int]
"""What a delta says of an extent: the fields of `lsm.delta.Tail`, in that order."""

_EXTENTS_PER_STEP = 256


class Usage(NamedTuple):
    """Live bytes of one extent, as the manifest records them."""

    extent: int
    epoch: int
    live_bytes: int


class UsageSnapshot:
    """Live bytes of data as of one moment, by extent; encoded when a manifest wants it.

    Args:
        live_bytes, epochs: of every extent.
    """

    def __init__(self, live_bytes: Sequence[int], epochs: Sequence[int]) -> None:
        self._live_bytes = live_bytes
        self._epochs = epochs
        self._encoded: bytes | None = None

    @classmethod
    def of(cls, usages: Iterable[Usage]) -> UsageSnapshot:
        """What a manifest has recorded."""
        found = cls((), ())
        found._encoded = b"".join(USAGE.pack(*usage) for usage in usages)
        return found

    async def encoded(self, slices: Slices) -> bytes:
        """As a manifest has it. Checkpoints: as `slices` does, the first time."""
        if self._encoded is None:
            parts = []
            for start in range(0, len(self._live_bytes), _EXTENTS_PER_STEP):
                some = self._live_bytes[start : start + _EXTENTS_PER_STEP]
                usages = [
                    (index, self._epochs[index], live)
                    for index, live in enumerate(some, start)
                    if live
                ]
                parts += [USAGE.pack(*usage) for usage in usages]
                await slices.spend(_EXTENTS_PER_STEP // 16 + len(usages))
            self._encoded = b"".join(parts)
            self._live_bytes = self._epochs = ()
        return self._encoded


@dataclass(slots=True, eq=False)
class Tail:
    """What has been appended to an extent and not yet handed to the scheduler."""

    start: int
    before: Dependency
    persistent: Dependency = field(default_factory=Dependency)
    buffers: list[Buffer] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Extent:
    """State of one extent; byte positions are relative to its start."""

    index: int
    state: ExtentState = ExtentState.FREE
    stream: Stream = Stream.NONE
    epoch: int = 0
    write_pointer: int = 0
    order: int = 0
    live_bytes: int = 0
    live_change: int = 0
    last_delta: int = 0
    """Nothing here dies, or is read at recovery, for a delta beyond this number."""
    is_stuck: bool = False
    """Something live could not be moved out of this life of it."""
    lost_bytes: int = 0
    """So much of it is lost to users while it is stuck; see SpaceAccount.lost_around."""
    pins: int = 0
    writes_pending: int = 0
    declared: Dependency = PERSISTENT
    tail: Tail | None = None

    def entry(self) -> ExtentEntry:
        """The extent as a superblock record names it."""
        return ExtentEntry(
            self.index, self.state, self.stream, self.epoch, self.write_pointer, self.order
        )


class FreeExtents(deque[Extent]):
    """The free extents that may be handed out, longest free first; and those that are withheld."""

    def __init__(self) -> None:
        super().__init__()
        self._end: int | None = None
        self._withheld: list[Extent] = []

    @property
    def are_withheld(self) -> bool:
        """Whether some extents are not handed out."""
        return self._end is not None

    @property
    def withheld_count(self) -> int:
        """Free extents that are not handed out."""
        return len(self._withheld)

    def append(self, extent: Extent) -> None:
        """The extent is free, and the device has been told."""
        if self.is_behind_end(extent):
            self._withheld.append(extent)
        elif self._end is not None:
            self.appendleft(extent)  # before those that are spared
        else:
            super().append(extent)

    def extend(self, extents: Iterable[Extent]) -> None:
        """All of these are."""
        for extent in extents:
            self.append(extent)

    def is_behind_end(self, extent: Extent) -> bool:
        """Whether the extent is withheld, or will be once it is free."""
        return self._end is not None and extent.index >= self._end

    def withhold(self, end: int, wanted: int) -> None:
        """From here on, extents with this number and higher ones are not handed out (I1).

        While fewer than `wanted` others are free, some are spared: there has to be room for what
        is moved to make room.
        """
        assert self._end is None, "they are withheld already"
        self._end = end
        extents = list(self)
        self.clear()
        self.extend(extents)
        for _ in range(min(wanted - len(self), len(self._withheld))):
            super().append(self._withheld.pop(0))

    def withhold_all(self) -> None:
        """None is spared any more."""
        extents = list(self)
        self.clear()
        self.extend(extents)

    def hand_back(self) -> None:
        """What was withheld may be handed out again."""
        self._end = None
        extents, self._withheld = self._withheld, []
        self.extend(extents)

    def forget(self) -> None:
        """What was withheld is no more."""
        self._end = None
        self._withheld.clear()

    @contextmanager
    def lent(self) -> Iterator[Extent]:
        """The extent that comes next; nobody else gets it while the body runs, then it is last."""
        extent = self.popleft()
        try:
            yield extent
        finally:
            if self._end is None:
                self.append(extent)
            else:
                # It may be one that is spared.
                super().append(extent)
