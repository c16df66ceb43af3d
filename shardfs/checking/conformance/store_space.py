"""What an open store says of its space and does about it, for the model and for coverage.

Role: reads the figures that models.space_model judges, and counts what reclamation goes through.

Not here: what is right (models/space_model.py), when to look (store_system.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.store_checks import Entries
from shardfs.checking.models.space_model import Figures, Held, SpaceModel
from shardfs.engine.extent import Extent
from shardfs.engine.lsm.compaction import GARBAGE_SHARE_MAX
from shardfs.engine.pieces import Shard
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError

MOVED: Final = "reclaim survivor moved"
"""What coverage counts these by."""


def figures_of(store: Store) -> Figures:
    """What the store says now."""
    space = store.space()
    runs = store._tree.runs
    data = sum([each.live_bytes for each in store._extents.all if each.stream in DATA_STREAMS])
    tree = sum([run.total_bytes for run in runs])
    memory = store._extents.space.memory_bytes
    stuck = [each for each in store._extents.all if each.is_stuck and each.stream in DATA_STREAMS]
    lost = sum([store._extents.space.lost_around(each.live_bytes) for each in stuck])
    assert store._extents.space.stuck_bytes == lost, (
        f"{lost} bytes are lost in {len(stuck)} extents"
    )
    return Figures(
        space.total_bytes,
        space.free_bytes,
        space.reserved_bytes,
        data,
        tree,
        len(runs),
        memory,
        lost,
    )


def held_by(entries: Entries) -> dict[bytes, Held]:
    """What each key with data holds, as its pieces say."""
    held = {}
    for key, value in entries:
        if isinstance(value, Shard):
            shown = sum(piece.length for piece in value.pieces)
            held[key] = Held(shown, shown, len(value.pieces))
    return held


class ReclamationWatch:
    """Counts what reclamation in one open store does, without changing it; and nothing that lives
    stays where it is without a reason.

    Args:
        store: just opened.
        coverage: told.
        may_be_stuck: whether a fault explains that something cannot be moved.
    """

    def __init__(self, store: Store, coverage: Coverage, may_be_stuck: Callable[[], bool]) -> None:
        self._may_be_stuck = may_be_stuck
        self._counts = coverage.counts
        self._is_moving = False
        evacuator, checkpointer = store._evacuator, store._checkpointer
        self._wrap(evacuator, "evacuate", self._evacuated)
        self._wrap(checkpointer, "compact", self._compacted)
        self._wrap(checkpointer, "empty", self._emptied)
        self._wrap(store._maintenance.reclamation, "step", self._reclaimed)
        append = evacuator._append

        def appended(*arguments: Any) -> Any:
            self._counts[MOVED] += 1
            return append(*arguments)

        vars(evacuator)["_append"] = appended

    def cut(self) -> None:
        """The power fails now."""
        self._counts["reclaim cut while moving"] += self._is_moving

    def _wrap(self, part: object, name: str, around: Callable[..., Awaitable[object]]) -> None:
        work = getattr(part, name)

        async def watched(*arguments: Any, **options: Any) -> Any:
            return await around(work, *arguments, **options)

        vars(part)[name] = watched

    async def _evacuated(self, work: Callable[[Extent], Awaitable[int]], extent: Extent) -> int:
        self._is_moving = True
        moved = await work(extent)
        self._counts["reclaim extent evacuated"] += not extent.live_bytes
        if extent.live_bytes:
            self._counts["reclaim extent stuck"] += 1
            assert self._may_be_stuck(), (
                f"extent {extent.index} keeps {extent.live_bytes} live bytes, and nothing failed"
            )
        return moved

    async def _reclaimed(self, work: Callable[..., Awaitable[int]], **options: bool) -> int:
        try:
            return await work(**options)
        finally:
            self._is_moving = False

    async def _compacted(
        self, work: Callable[..., Awaitable[bool]], *, garbage_share_max: float = GARBAGE_SHARE_MAX
    ) -> bool:
        merged = await work(garbage_share_max=garbage_share_max)
        self._counts["merge"] += merged
        self._counts["merge thorough"] += merged and not garbage_share_max
        return merged

    async def _emptied(self, work: Callable[[int], Awaitable[bool]], extent: int) -> bool:
        emptied = await work(extent)
        self._counts["reclaim extent of the tree emptied"] += emptied
        return emptied


class SpaceCheck:
    """The space of one sequence's store, beside its model.

    Args:
        model: of the device.
        coverage: told.
        may_be_stuck: see ReclamationWatch.
    """

    def __init__(
        self, model: SpaceModel, coverage: Coverage, may_be_stuck: Callable[[], bool]
    ) -> None:
        self._may_be_stuck = may_be_stuck
        self.model = model
        self._coverage = coverage
        self._store: Store | None = None
        self._refusal: NoSpaceError | None = None
        self._watch: ReclamationWatch | None = None

    def opened(self, store: Store) -> None:
        """Another life begins."""
        self._store = store
        self._watch = ReclamationWatch(store, self._coverage, self._may_be_stuck)

    def cut(self) -> None:
        """The power fails now."""
        if self._watch is not None:
            self._watch.cut()

    def figures(self) -> Figures:
        """What the store says now."""
        assert self._store is not None
        return figures_of(self._store)

    def check(self, content: Mapping[bytes, bytes]) -> None:
        """While nothing is being changed: the figures fit the content."""
        self.model.follow(content)
        self.model.check(self.figures())

    def check_parts(self) -> None:
        """The parts of the device fit the figures."""
        store = self._store
        assert store is not None
        device_bytes = store._parts.device.size_bytes
        self.model.check_parts(store.space_parts(), self.figures(), device_bytes)

    @contextmanager
    def room(self, key: bytes, wanted: int, *, judged: bool = True) -> Iterator[None]:
        """The body takes `wanted` bytes of data for a key, or raises NoSpaceError (space_model.I5).

        Args:
            judged: no fault has made extents unusable.
        """
        assert self._store is not None
        gatherer = self._store._gatherer
        before, gathered_bytes = self.figures(), gatherer.gathered_bytes
        try:
            yield
        except NoSpaceError as error:
            if judged:
                self.model.refused(key, wanted, before, self.figures())
            self._refusal = error
            self._coverage.counts["no space"] += 1
            raise
        # Shards that were gathered from many pieces have fewer heads and shorter entries.
        if wanted and gatherer.gathered_bytes == gathered_bytes:
            self.model.accepted(wanted, before, self.figures())

    def is_right(self, error: NoSpaceError) -> bool:
        """Whether an error was one for want of room."""
        return error is self._refusal
