"""A device is filled, emptied and filled again: nothing is lost on the way, power cuts included.

What is checked: each cycle takes as many bytes as the first, to within 2 %; what the store says of
its space is right at every step (models.space_model); emptied and idle, as much is free as at
first; and a power cut at any write leaves a store that goes on like this.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Final

import pytest
import trio

from shardfs import limits
from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.store_checks import read_entries
from shardfs.checking.conformance.store_space import SpaceCheck, held_by
from shardfs.checking.models.space_model import Figures, SpaceModel
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.fsck import check_store
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.reserve import reserve_extents
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError
from tests.crash.harness import (
    Content,
    CrashFinding,
    History,
    Moment,
    Recorder,
    causes_of,
    read_content,
    run_in_order,
)
from tests.crash.workloads import Client, value_of
from tests.engine.stores import content

KIB = limits.KIB
EXTENT = 64 * KIB
CYCLES: Final = 20
ACCEPTED_SHARE = 0.98
IDLE_S = 60
CHECKED_EVERY = 16
ORDERS = (27, 34, 56)
"""Of tasks, in which small values once found less room: too little was gained by a merge."""
SIZES: Final[dict[str, tuple[int, ...]]] = {
    "small": (7 * KIB,),
    "large": (300 * KIB,),
    "mixed": (4 * KIB, 900, 90 * KIB, 17 * KIB, 6 * KIB, 200 * KIB),
}


def space_of(extent_count: int, store: Store, coverage: Coverage) -> SpaceCheck:
    """The model of the space of a store with values longer than those in the tree."""
    model = SpaceModel(
        extent_count,
        EXTENT,
        reserve_extents(extent_count),
        lambda _, length: length > limits.INLINE_VALUE_BYTES_MAX,
    )
    check = SpaceCheck(model, coverage, lambda: False)
    check.opened(store)
    return check


async def small_device(
    extent_count: int, *, zoned: bool = False, checkpoints_max: int = 1
) -> SimulatedDevice:
    size_bytes = extent_count * EXTENT
    device = SimulatedDevice(
        size_bytes, 512, EXTENT if zoned else None, checkpoints_max=checkpoints_max
    )
    await format_device(device, plan(size_bytes, 512, extent_bytes=EXTENT))
    return device


class Filler:
    """Fills one store and empties it again.

    Args:
        store: open.
        space: its model.
        sizes: of values, in turns.
        content: what it holds.
        first: number of its first value.
    """

    def __init__(
        self,
        store: Store,
        space: SpaceCheck,
        sizes: Sequence[int],
        content: Content | None = None,
        first: int = 0,
    ) -> None:
        self._store = store
        self._space = space
        self._sizes = sizes
        self._numbers: Iterator[int] = count(first)
        self.content: Content = content if content is not None else {}

    async def fill(self) -> int:
        """Until nothing more fits; the bytes taken."""
        taken = 0
        refused: set[int] = set()
        while len(refused) < len(self._sizes):
            number = next(self._numbers)
            size = self._sizes[number % len(self._sizes)]
            if size in refused:
                continue
            key, value = b"key %06d" % number, value_of(number, size)
            try:
                with self._space.room(key, size):
                    await self._store.put(key, value)
            except NoSpaceError:
                refused.add(size)
                continue
            self.content[key] = value
            taken += size
            self._check(number)
        return taken

    async def thin(self, rng: random.Random) -> None:
        """Half of the values go, and some are replaced."""
        for key in rng.sample(sorted(self.content), len(self.content) // 2):
            await self._store.delete(key)
            del self.content[key]
        for key in rng.sample(sorted(self.content), len(self.content) // 4):
            value = value_of(next(self._numbers), len(self.content[key]))
            with suppress(NoSpaceError), self._space.room(key, len(value)):
                await self._store.put(key, value)
                self.content[key] = value
            self._space.check(self.content)

    async def empty(self) -> None:
        """Everything goes; that is never refused."""
        for key in sorted(self.content):
            await self._store.delete(key)
            del self.content[key]
            self._check(len(self.content))

    def _check(self, number: int) -> None:
        if number % CHECKED_EVERY == 0:
            self._space.check(self.content)


async def _twenty_cycles(kind: str, thinned: bool) -> None:
    extent_count, rng, coverage = 32, random.Random(kind), Coverage()
    device = await small_device(extent_count)
    async with Store.open(device, options=StoreOptions(commit_interval_s=1.0)) as store:
        space = space_of(extent_count, store, coverage)
        fresh = space.figures()
        space.model.begin(fresh)
        filler = Filler(store, space, SIZES[kind])
        accepted = []
        for _ in range(CYCLES):
            await filler.fill()
            if thinned:
                await filler.thin(rng)
                await filler.fill()
            assert await content(store) == filler.content  # the background moves what it reads
            accepted.append(sum(map(len, filler.content.values())))
            await filler.empty()
        assert min(accepted) >= ACCEPTED_SHARE * accepted[0], accepted
        assert max(accepted) <= accepted[0] / ACCEPTED_SHARE, accepted
        await trio.sleep(IDLE_S)
        space.model.emptied(space.figures(), merged=False)
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        report = await check_store(store, data=True)
        assert report.is_clean, report.findings[:3]
    if thinned and kind != "large":
        assert coverage.counts["reclaim extent evacuated"] > CYCLES
        assert coverage.counts["reclaim survivor moved"] > CYCLES


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("thinned", [False, True], ids=["emptied", "thinned"])
def test_every_cycle_takes_as_much_as_the_first(kind: str, thinned: bool) -> None:
    run_in_order(_twenty_cycles, kind, thinned)


@pytest.mark.parametrize("order", ORDERS)
def test_every_cycle_in_another_order_of_tasks(order: int) -> None:
    run_in_order(_twenty_cycles, "small", False, seed=order)


# --- power cuts -----------------------------------------------------------------------------------

CUT_EXTENTS = limits.EXTENT_COUNT_MIN
CUT_SIZES = (11 * KIB, 5 * KIB, 23 * KIB)
FIRST_NUMBER_AFTER = 100_000
"""Of values written after a cut, so that none is one from before."""


async def _two_cycles(device: SimulatedDevice, history: History, coverage: Coverage) -> None:
    """Fill, thin out so that extents are emptied, fill again, empty; and once more."""
    rng = random.Random(4)
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        space_of(CUT_EXTENTS, store, coverage)
        client = Client(store, history)
        numbers = count()
        for _ in range(2):
            await _fill(client, numbers)
            for key in rng.sample(sorted(history.content), len(history.content) // 2):
                await client.delete(key)
            await store.sync()
            await store.checkpoint()
            await _fill(client, numbers)
            for key in sorted(history.content):
                await client.delete(key)
            await store.sync()
            while await store._checkpointer.compact(garbage_share_max=0.0):
                pass
    history.all_persistent()


async def _fill(client: Client, numbers: Iterator[int]) -> None:
    for number in numbers:
        size = CUT_SIZES[number % len(CUT_SIZES)]
        try:
            await client.put(b"key %06d" % number, value_of(number, size))
        except NoSpaceError:
            await client.store.sync()
            return
        if number % 8 == 0:
            await client.store.sync()


async def _goes_on(device: SimulatedDevice, moment: Moment, fresh: Figures, accepted: int) -> None:
    """The store opens with an allowed content, its space is right, it is emptied and filled."""
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        assert not store.health.reason, store.health.reason
        found = await read_content(store)
        assert found in moment.states, "no allowed state"
        space = space_of(CUT_EXTENTS, store, Coverage())
        space.model.begin(fresh)
        space.model.found(found, held_by(await read_entries(store)))
        space.check(found)
        space.check_parts()
        filler = Filler(store, space, CUT_SIZES, found, FIRST_NUMBER_AFTER)
        await filler.fill()
        await filler.empty()
        await store.checkpoint()
        taken = await filler.fill()
        assert taken >= ACCEPTED_SHARE * accepted, f"{taken} of {accepted} bytes are taken"
        assert await read_content(store) == filler.content


async def _fresh(device: SimulatedDevice) -> tuple[Figures, int]:
    """What a fresh store says, and how much it takes."""
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        space = space_of(CUT_EXTENTS, store, Coverage())
        fresh = space.figures()
        space.model.begin(fresh)
        return fresh, await Filler(store, space, CUT_SIZES).fill()


def cut_everywhere(every: int, *, zoned: bool, states: int, seed: int) -> int:
    """Cut the power at every so many device operations of the workload; how many states."""
    coverage = Coverage()
    empty = run_in_order(partial(small_device, CUT_EXTENTS, zoned=zoned, checkpoints_max=3))
    fresh, accepted = run_in_order(_fresh, empty.power_cut())
    recorder = Recorder(empty, History())
    run_in_order(_two_cycles, empty, recorder.history, coverage, seed=seed)
    assert coverage.counts["reclaim extent evacuated"] > 8
    assert coverage.counts["reclaim survivor moved"] > 20
    rng = random.Random(seed)
    checked = 0
    for moment in recorder.moments[seed % every :: every]:
        for choice in moment.point.choices(states, rng):
            device = empty.after_power_cut(moment.point, choice)
            try:
                run_in_order(_goes_on, device, moment, fresh, accepted)
            except Exception as error:
                what = "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes_of(error))
                raise CrashFinding(f"{moment.describe()}, surviving {choice}: {what}") from error
            checked += 1
    return checked


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
def test_a_cut_at_some_writes_of_two_cycles(zoned: bool) -> None:
    assert cut_everywhere(48, zoned=zoned, states=2, seed=1) > 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
def test_a_cut_at_every_write_of_two_cycles(zoned: bool) -> None:
    assert cut_everywhere(1, zoned=zoned, states=2, seed=2) > 500
