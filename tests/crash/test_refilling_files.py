"""A file system is filled, emptied and filled again: test_refilling.py, one floor up.

What is checked: each cycle takes as many bytes as the first, to within 2 %; df is right all the
while (checking.conformance.file_space), and after everything is removed within 1 % of what it was
at first; and a power cut at any write leaves a file system that its model allows
(models.file_model), in which everything can be removed and as much be written again.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Final, NamedTuple

import pytest
import trio

from shardfs import limits
from shardfs.checking.conformance.file_space import FileSpace
from shardfs.checking.conformance.file_trees import FILE_MODE, find_trees
from shardfs.checking.models.file_model import FileModel
from shardfs.checking.power_cuts import Operation, PowerCutPoint
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.fsck import check_store
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.fsck import check_files
from shardfs.fuse.keys import ROOT_INO
from tests.crash.harness import CrashFinding, causes_of, run_in_order
from tests.crash.workloads import value_of

KIB: Final = limits.KIB
EXTENT: Final = limits.MOUNT_EXTENT_BYTES_MIN
EXTENTS: Final = limits.EXTENT_COUNT_MIN
ACCEPTED_SHARE: Final = 0.98
IDLE_S: Final = 60
SIZES: Final[dict[str, tuple[int, ...]]] = {
    "small": (7 * KIB,),
    "large": (300 * KIB,),
    "mixed": (4 * KIB, 900, 90 * KIB, 17 * KIB, 6 * KIB, 200 * KIB),
}
CUT_SIZES: Final = (31 * KIB, 9 * KIB, 70 * KIB)


async def small_device(extent_count: int, checkpoints_max: int = 1) -> SimulatedDevice:
    size_bytes = extent_count * EXTENT
    device = SimulatedDevice(size_bytes, 512, checkpoints_max=checkpoints_max)
    await format_device(device, plan(size_bytes, 512, extent_bytes=EXTENT))
    return device


class Filler:
    """Fills a file system and empties it, and does the same to a model.

    Args:
        store, file_system: open.
        fresh_bytes: free in a fresh one.
        sizes: of files, in turns.
        first: number of the first file.
        model: of what is there.
    """

    def __init__(
        self,
        store: Store,
        file_system: FileSystem,
        fresh_bytes: int,
        sizes: tuple[int, ...],
        first: int = 0,
        model: FileModel | None = None,
    ) -> None:
        self._store = store
        self._file_system = file_system
        self._sizes = sizes
        self._numbers = count(first)
        self.model = FileModel() if model is None else model
        extents = store.identity.extent_count
        self.space = FileSpace(extents, EXTENT)
        self.space.resized(extents, fresh_bytes)

    async def fill(self, *, synced_every: int = 0) -> int:
        """Until nothing more fits; the bytes taken."""
        taken = 0
        refused: set[int] = set()
        while len(refused) < len(self._sizes):
            number = next(self._numbers)
            size = self._sizes[number % len(self._sizes)]
            if size not in refused:
                if await self._write(b"f%06d" % number, value_of(number, size)):
                    taken += size
                else:
                    refused.add(size)
                self.space.check(self._store)
            if synced_every and number % synced_every == 0:
                await self.sync()
        return taken

    async def _write(self, name: bytes, data: bytes) -> bool:
        path, mark = name.decode(), self.model.mark()
        self.model.create(path)
        node = self.model.lookup(path)
        try:
            made = await self._file_system.namespace.create(ROOT_INO, name, FILE_MODE, 0, 0)
        except NoSpaceError:
            self.model.back_to(mark)
            return False
        written = self.model.mark()
        self.model.write(node, 0, data)
        try:
            await self._file_system.writeback.write(made.ino, 0, data, privileged=True)
        except NoSpaceError:
            self.model.back_to(written)
            await self._remove(path)
            return False
        return True

    async def _remove(self, path: str) -> None:
        self.model.unlink(path)
        await self._file_system.namespace.unlink(ROOT_INO, path.encode())

    async def thin(self, rng: random.Random) -> None:
        """Half of the files go."""
        paths = sorted(path for path in self.model.tree.names if path)
        for path in rng.sample(paths, len(paths) // 2):
            await self._remove(path)

    async def empty(self) -> None:
        """Everything goes; that is never refused."""
        for path in sorted(path for path in self.model.tree.names if path):
            await self._remove(path)
            self.space.check(self._store)
        await self._file_system.orphans.drained()

    async def sync(self) -> None:
        """Everything is durable."""
        promise = self.model.begin_sync_of_all()
        await self._file_system.sync()
        self.model.keep(promise)

    async def check(self) -> None:
        """The file system shows what the model says."""
        (tree,) = await find_trees(self._file_system, 1)
        assert not (trouble := self.model.difference(tree)), trouble[:3]


@asynccontextmanager
async def opened(device: SimulatedDevice) -> AsyncIterator[tuple[Store, FileSystem]]:
    """The file system, with its tasks and the store's."""
    async with Store.open(device, options=StoreOptions(commit_interval_s=1.0)) as store:
        assert not store.health.reason, store.health.reason
        file_system = await FileSystem.open(store)
        async with trio.open_nursery() as nursery:
            file_system.start(nursery)
            yield store, file_system
            nursery.cancel_scope.cancel()
        await file_system.end()


async def _cycles(kind: str, cycles: int) -> None:
    rng = random.Random(kind)
    device = await small_device(EXTENTS)
    async with opened(device) as (store, file_system):
        filler = Filler(store, file_system, store.space().free_bytes, SIZES[kind])
        accepted = []
        for _ in range(cycles):
            await filler.fill()
            await filler.thin(rng)
            await filler.fill()
            await filler.check()
            names = filler.model.tree.names.values()
            contents = filler.model.contents
            accepted.append(sum(len(contents[node].content) for node in names if node in contents))
            await filler.empty()
            await filler.sync()
            filler.model = FileModel()
        assert min(accepted) >= ACCEPTED_SHARE * accepted[0], accepted
        assert max(accepted) <= accepted[0] / ACCEPTED_SHARE, accepted
        await trio.sleep(IDLE_S)
        filler.space.check_emptied(store)
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        assert not (await check_store(store, data=True)).findings
        assert not (await check_files(store)).findings


@pytest.mark.parametrize("kind", SIZES)
async def test_every_cycle_takes_as_much_as_the_first(kind: str) -> None:
    await _cycles(kind, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", SIZES)
async def test_each_of_twenty_cycles_takes_as_much_as_the_first(kind: str) -> None:
    await _cycles(kind, 20)


# --- power cuts -----------------------------------------------------------------------------------

FIRST_NUMBER_AFTER: Final = 100_000


class Moment(NamedTuple):
    """A submitted operation of the device, and the model as of then."""

    number: int
    point: PowerCutPoint
    model: FileModel


async def _two_cycles(
    device: SimulatedDevice, fresh_bytes: int, every: int, first: int
) -> list[Moment]:
    """Fill, thin out, fill again, empty; and once more. Some moments of it."""
    rng = random.Random(4)
    moments: list[Moment] = []
    numbers = count()
    async with opened(device) as (store, file_system):
        filler = Filler(store, file_system, fresh_bytes, CUT_SIZES)

        def observe(_: Operation) -> None:
            number = next(numbers)
            if number % every == first:
                moments.append(Moment(number, device.power_cut_point(), filler.model.copy()))

        device.observer = observe
        for _ in range(2):
            await filler.fill(synced_every=4)
            await filler.thin(rng)
            await filler.sync()
            await filler.fill(synced_every=4)
            await filler.empty()
            await filler.sync()
        device.observer = None
    return moments


async def _goes_on(
    device: SimulatedDevice, model: FileModel, fresh_bytes: int, accepted: int
) -> None:
    async with Store.open(device, options=StoreOptions(read_only=True, background=False)) as store:
        assert not (await check_files(store)).findings  # while nobody frees what has no name
    async with opened(device) as (store, file_system):
        (tree,) = await find_trees(file_system, 1)
        after = model.after_crash(tree)
        filler = Filler(store, file_system, fresh_bytes, CUT_SIZES, FIRST_NUMBER_AFTER, after)
        filler.space.check(store)
        await filler.fill()
        await filler.empty()
        await filler.sync()
        await trio.sleep(IDLE_S)
        filler.space.check_emptied(store)
        taken = await filler.fill()
        assert taken >= ACCEPTED_SHARE * accepted, f"{taken} of {accepted} bytes are taken"
        await filler.check()


async def _fresh(device: SimulatedDevice) -> tuple[int, int]:
    """What is free in a fresh file system, and how much it takes."""
    async with opened(device) as (store, file_system):
        fresh_bytes = store.space().free_bytes
        return fresh_bytes, await Filler(store, file_system, fresh_bytes, CUT_SIZES).fill()


def cut_everywhere(every: int, *, states: int, seed: int) -> int:
    """Cut the power at every so many device operations; how many states were looked at."""
    empty = run_in_order(partial(small_device, EXTENTS, 3))
    fresh_bytes, accepted = run_in_order(_fresh, empty.power_cut())
    moments = run_in_order(_two_cycles, empty, fresh_bytes, every, seed % every, seed=seed)
    rng = random.Random(seed)
    checked = 0
    for moment in moments:
        for choice in moment.point.choices(states, rng):
            device = empty.after_power_cut(moment.point, choice)
            try:
                run_in_order(_goes_on, device, moment.model.copy(), fresh_bytes, accepted)
            except Exception as error:
                what = "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes_of(error))
                raise CrashFinding(f"{moment.number}, surviving {choice}: {what}") from error
            checked += 1
    return checked


def test_a_cut_at_some_writes_of_two_cycles() -> None:
    assert cut_everywhere(60, states=1, seed=1) > 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cut_at_every_write_of_two_cycles() -> None:
    assert cut_everywhere(1, states=2, seed=2) > 300
