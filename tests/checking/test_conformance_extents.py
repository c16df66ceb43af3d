"""Random sequences on extents find nothing, unless a bug is planted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shardfs import limits
from shardfs.checking.conformance.case import Coverage, Operation
from shardfs.checking.conformance.extents_world import ExtentWorld
from shardfs.checking.conformance.running import quiet
from shardfs.checking.schedule import Finding, Random, run_once
from shardfs.engine.cache import Cache
from shardfs.engine.chunks import ChunkStore
from shardfs.engine.commit import Committer
from shardfs.engine.dependency import PERSISTENT
from shardfs.engine.extent import Extent
from shardfs.engine.extents import Extents
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.superblock import Superblock
from shardfs.engine.superblock_record import ExtentEntry

STEPS_MAX = 200_000
SEQUENCES = 60


def finding_of(seed: int, coverage: Coverage) -> tuple[Finding | None, str]:
    """What comes of the sequence of a seed, and the digest of its schedule."""
    world = ExtentWorld()
    operations = world.generate(random.Random(seed))
    strategy = Random(seed)
    strategy.begin()
    with quiet():
        run = run_once(world.program(operations, coverage), strategy, steps_max=STEPS_MAX)
    return run.finding, run.trace.digest


def sequences_until_found(sequences_max: int) -> int:
    """Sequences that it takes to find whatever is wrong; fails when nothing is found."""
    for seed in range(sequences_max):
        finding, _ = finding_of(seed, Coverage())
        if finding is not None:
            return seed + 1
    raise AssertionError("the planted bug was not found")


def test_sequences_find_nothing_and_reach_everything() -> None:
    coverage = Coverage()
    for seed in range(SEQUENCES):
        finding, _ = finding_of(seed, coverage)
        assert finding is None, f"seed {seed}: {finding}"
    done = {name.removeprefix("operation ") for name in coverage.counts if "operation" in name}
    assert len(done) > len(ExtentWorld.alphabet) * 0.7
    assert coverage.counts["extents freed"] > SEQUENCES // 4
    assert len(coverage.crash_states) > SEQUENCES // 3


def test_a_seed_makes_a_sequence_and_its_run() -> None:
    for seed in (1, 2, 3):
        assert finding_of(seed, Coverage()) == finding_of(seed, Coverage())
        world = ExtentWorld()
        assert world.generate(random.Random(seed)) == world.generate(random.Random(seed))


@pytest.mark.parametrize("numbers", [(), (0,), (10**6, 10**6, 10**6, 10**6)])
def test_any_sequence_can_be_run(numbers: tuple[int, ...]) -> None:
    """Operations whose numbers are missing, or far out of bounds, do something or nothing."""
    world = ExtentWorld()
    names = [name for name in world.alphabet if not name.startswith(("vanish", "fail", "lose"))]
    operations = tuple(Operation(name, numbers) for name in (*names, *names))
    strategy = Random(0)
    strategy.begin()
    run = run_once(world.program(operations, Coverage()), strategy, steps_max=STEPS_MAX)
    assert run.finding is None


# --- planted bugs -----------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def off_by_one_block_at_the_end_of_an_extent(patch: pytest.MonkeyPatch) -> None:
    """A frame is placed where it does not fit (issue class 1)."""
    real_place = Extents.place

    def place(self: Extents, stream: Stream, length: int, *rest: Any, **named: Any) -> Extent:
        return real_place(
            self, stream, max(1, length - limits.FRAME_ALIGNMENT_BYTES), *rest, **named
        )

    patch.setattr(Extents, "place", place)


def a_cache_that_is_not_drained_by_a_reset(patch: pytest.MonkeyPatch) -> None:
    """Issue class 2: the epoch is no part of the key."""
    real_load = Cache.load

    async def load(self: Cache, key: tuple[int, int, int], loader: Any) -> Any:
        return await real_load(self, (key[0], 0, key[2]), loader)

    patch.setattr(Cache, "load", load)


def an_extent_reused_before_its_reset_is_persistent(patch: pytest.MonkeyPatch) -> None:
    """Issue classes 6 and 7: it is handed out before the record that frees it is durable."""
    real_mark_free = Extents.mark_free

    def mark_free(self: Extents, extent: Extent) -> None:
        real_mark_free(self, extent)
        self._free.appendleft(extent)

    async def release(self: Extents, extent: Extent) -> None:
        del self, extent

    patch.setattr(Extents, "mark_free", mark_free)
    patch.setattr(Extents, "release", release)


def extents_freed_while_a_crash_may_bring_the_reference_back(patch: pytest.MonkeyPatch) -> None:
    """The delta that dropped the last reference is not waited for."""
    real_dead = Extents.dead

    def dead(self: Extents, durable: int, checkpoint: int, log_extent: int) -> list[Extent]:
        del durable
        return real_dead(self, 2**60, checkpoint, log_extent)

    patch.setattr(Extents, "dead", dead)


def a_recorded_pointer_behind_what_is_persistent(patch: pytest.MonkeyPatch) -> None:
    """Issue class 7: the record has the pointer of one block ago."""
    real_entry = Extent.entry

    def entry(self: Extent) -> ExtentEntry:
        found = real_entry(self)
        if self.state is ExtentState.OPEN and self.stream is not Stream.META:
            found = found._replace(write_pointer=max(0, found.write_pointer - limits.BLOCK_BYTES))
        return found

    patch.setattr(Extent, "entry", entry)


def a_pointer_ahead_of_all_data(patch: pytest.MonkeyPatch) -> None:
    """Issue class 7: the record promises a block that nobody has appended."""
    real_entry = Extent.entry

    def entry(self: Extent) -> ExtentEntry:
        found = real_entry(self)
        if self.state is ExtentState.OPEN and self.stream is not Stream.META:
            found = found._replace(write_pointer=found.write_pointer + limits.BLOCK_BYTES)
        return found

    patch.setattr(Extent, "entry", entry)


def writes_that_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """Issue class 8: the dependency of a write is dropped on its way."""
    real_submit = Scheduler.submit

    def submit(self: Scheduler, *arguments: Any) -> None:
        extent, offset, buffers, length, _before, persistent, on_written = arguments
        real_submit(self, extent, offset, buffers, length, PERSISTENT, persistent, on_written)

    patch.setattr(Scheduler, "submit", submit)


def an_epoch_that_is_not_raised(patch: pytest.MonkeyPatch) -> None:
    """What lay in an extent before its reset passes for new."""
    real_mark_free = Extents.mark_free

    def mark_free(self: Extents, extent: Extent) -> None:
        real_mark_free(self, extent)
        extent.epoch -= 1

    patch.setattr(Extents, "mark_free", mark_free)


def tails_that_no_delta_carries(patch: pytest.MonkeyPatch) -> None:
    """Issue class 8: commits do not record the soft write pointers."""
    patch.setattr(Extents, "take_touched", lambda _: [])


def a_superblock_log_in_one_copy_only(patch: pytest.MonkeyPatch) -> None:
    """A record counts as durable with its second copy alone, and that one is never flushed."""
    real_write = Superblock.write

    async def write(self: Superblock, *arguments: Any, **named: Any) -> None:
        done = self._next
        await real_write(self, *arguments, **named)
        if not done.settled:
            done.resolve()

    patch.setattr(Superblock, "write", write)


def a_stale_locator_that_is_served(patch: pytest.MonkeyPatch) -> None:
    """A chunk can be read after its extent's reset, as long as the bytes are there."""
    real_get = ChunkStore.get

    async def get(self: ChunkStore, locator: Any, *range_: int) -> Any:
        epoch = self._extents.at(locator.extent).epoch
        return await real_get(self, locator._replace(epoch=epoch), *range_)

    patch.setattr(ChunkStore, "get", get)


def a_commit_that_does_not_wait_for_its_riders(patch: pytest.MonkeyPatch) -> None:
    """Data go neither before the delta nor with it."""
    real_add = Committer.add

    def add(self: Committer, changes: Any, riders: Any) -> None:
        del riders
        real_add(self, changes, [])

    patch.setattr(Committer, "add", add)


PLANTS: tuple[Plant, ...] = (
    off_by_one_block_at_the_end_of_an_extent,
    a_cache_that_is_not_drained_by_a_reset,
    an_extent_reused_before_its_reset_is_persistent,
    extents_freed_while_a_crash_may_bring_the_reference_back,
    a_recorded_pointer_behind_what_is_persistent,
    a_pointer_ahead_of_all_data,
    writes_that_do_not_wait,
    an_epoch_that_is_not_raised,
    tails_that_no_delta_carries,
    a_superblock_log_in_one_copy_only,
    a_stale_locator_that_is_served,
    a_commit_that_does_not_wait_for_its_riders,
)


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """The engine with a bug in it."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        yield


@pytest.fixture(autouse=True, scope="module")
def _formatted_before_the_bugs() -> None:
    for geometry in range(8):
        world = ExtentWorld()
        world.program((Operation("device", (geometry, 0)),), Coverage())


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant) -> None:
    with planted(plant):
        assert sequences_until_found(400) > 0
