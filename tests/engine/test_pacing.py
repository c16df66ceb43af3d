"""The control law of background work and of writers, and what it does to a store."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import trio

from shardfs import limits
from shardfs.engine import commit
from shardfs.engine.evacuation import Evacuator, _Move
from shardfs.engine.extent import Extent, Usage, UsageSnapshot
from shardfs.engine.lsm import compaction, segment, segment_writer
from shardfs.engine.lsm.filter import Filter
from shardfs.engine.lsm.manifest import Manifest, decode_manifest, encode_manifest
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.pacing import Slices, Throttle, delay_s, rest_s, share_between
from shardfs.engine.store import Store
from tests.engine.stores import MANUAL, content, fill_a_level, formatted, opened

KIB = limits.KIB
SHARES = [number / 50 for number in range(51)]


def test_the_law() -> None:
    assert rest_s(0.0) == limits.REST_S_MAX
    assert rest_s(1.0) == 0.0
    assert all(more >= less for more, less in pairwise(map(rest_s, SHARES)))
    for length in (0, 4 * KIB, 4096 * KIB):
        delays = [delay_s(share, length) for share in SHARES]
        assert all(less <= more for less, more in pairwise(delays))
        assert delays[0] == delays[25] == 0.0 < delays[26]
        assert delays[-1] == limits.ADMISSION_DELAY_S_MAX
    assert delay_s(0.75, 4096 * KIB) >= delay_s(0.75, 4 * KIB)


def test_a_share_lies_between_its_bounds() -> None:
    assert [share_between(value, 2, 4) for value in (1, 2, 3, 4, 9)] == [0, 0, 0.5, 1, 1]
    assert [share_between(value, 4, 2) for value in (1, 2, 3, 4, 9)] == [1, 1, 0.5, 0, 0]


async def test_slices_give_way_by_count_and_rest_by_debt() -> None:
    debts = [0.0, 0.5, 1.0]
    slices = Slices(lambda: debts[0])
    started = trio.current_time()
    for _ in range(limits.SLICE_COST_MAX - 1):
        await slices.spend(1)
    assert trio.current_time() == started
    taken = []
    while debts:
        before = trio.current_time()
        await slices.spend(limits.SLICE_COST_MAX)
        taken.append(trio.current_time() - before)
        del debts[0]
    assert taken == pytest.approx([rest_s(0.0), rest_s(0.5), 0.0])


async def test_writers_together_are_as_slow_as_one() -> None:
    """One after the other or all at once: the same bytes take the same time (I3)."""
    length, count, debt = 8 * KIB, 200, 0.7

    async def took(tasks: int) -> float:
        throttle = Throttle()
        started = trio.current_time()

        async def write(share: int) -> None:
            for _ in range(share):
                await throttle.delay(debt, length)

        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(write, count // tasks)
        return trio.current_time() - started

    alone = await took(1)
    assert alone == pytest.approx(count * delay_s(debt, length), rel=0.1)
    assert await took(4) == pytest.approx(alone, rel=0.1)


async def test_no_delay_is_longer_than_stated_and_a_cancelled_one_owes_nothing_more() -> None:
    throttle = Throttle()
    worst = 0.0

    async def write() -> None:
        nonlocal worst
        started = trio.current_time()
        await throttle.delay(1.0, limits.QUEUED_BYTES_MAX)
        worst = max(worst, trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(write)
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(0.001):
            await throttle.delay(1.0, 0)
    assert worst == pytest.approx(limits.ADMISSION_DELAY_S_MAX)


async def test_the_rates_meet() -> None:
    """A writer who could take all space at once and work that gives back 20 MiB/s at most: after
    the start the writer gets what is given back, and never has to stop."""
    wanted, ready = 32.0 * limits.MIB, 32.0 * limits.MIB
    seconds, freed_by_slice = 8, 32 * KIB
    slice_s = freed_by_slice / (20 * limits.MIB)
    written = stops = 0.0
    throttle = Throttle()

    def debt() -> float:
        return share_between(ready, wanted, 1.0 * limits.MIB)

    async def write() -> None:
        nonlocal ready, written, stops
        while True:
            await throttle.delay(debt(), 64 * KIB)
            await trio.sleep(0.0005)
            if ready < 64 * KIB:
                stops += 1
                continue
            ready -= 64 * KIB
            written += 64 * KIB

    async def give_back() -> None:
        nonlocal ready
        slices = Slices(debt)
        while True:
            await trio.sleep(slice_s)
            ready = min(wanted, ready + freed_by_slice)
            await slices.spend(limits.SLICE_COST_MAX)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(give_back)
    assert not stops
    assert 0.5 < written / (seconds * 20 * limits.MIB + 32 * limits.MIB) <= 1.01
    assert 0.5 < debt() < 1.0


class WorkOfSteps(trio.abc.Instrument):
    """The most work of each kind that was done between two checkpoints of a task."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.worst: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._patch = patch
        self._count(segment_writer, "encode_block", "entries encoded", lambda entries: len(entries))
        self._count(segment, "decode_block", "blocks decoded", lambda _data: 1)
        self._count(Filter, "add", "keys filtered", lambda _filter, keys: len(keys))
        self._count(commit, "encode_part", "parts of a delta", lambda *_: 1)
        self._count(commit, "_let_go", "places let go of", self._places)
        self._count(compaction, "candidates", "keys looked for below", lambda *_: 1)
        self._count(Memtable, "forget", "entries let go of", lambda _table, count: count)
        self._count(Evacuator, "_place_now", "pieces moved", self._pieces)
        self._count(Evacuator, "_place_now", "bytes moved", self._bytes)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._now.clear()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.worst |= self._now

    def _count(self, owner: Any, name: str, kind: str, amount: Any) -> None:
        real = getattr(owner, name)

        def counting(*arguments: Any) -> Any:
            self._now[kind] += amount(*arguments)
            return real(*arguments)

        self._patch.setattr(owner, name, counting)

    @staticmethod
    def _places(gathered: dict[int, Any]) -> int:
        return len(next(reversed(gathered.values())).locators)

    @staticmethod
    def _pieces(_evacuator: object, _extent: object, moves: list[_Move]) -> int:
        return sum(len(move.copies) for move in moves)

    @staticmethod
    def _bytes(_evacuator: object, _extent: object, moves: list[_Move]) -> int:
        return sum(move.bytes for move in moves)


async def test_what_is_done_between_two_checkpoints_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commits, checkpoints, merges, evacuation on a tree of many entries (pacing.I1)."""
    work = WorkOfSteps(monkeypatch)
    device = await formatted(64)
    async with opened(device) as store:
        trio.lowlevel.add_instrument(work)
        for version in range(limits.RUNS_PER_LEVEL_MAX):
            for number in range(3000):
                await store.put(b"%08x" % (number * 2654435761 % 2**32), b"%d" % version * 30)
            for number in range(600):
                await store.put(b"value %04d" % number, bytes(5 * KIB))
            await store.sync()
            await store.checkpoint()
        while await store.compact():
            pass
        for number in range(600):
            if number % 3:
                await store.delete(b"value %04d" % number)
        await store.sync()
        while await store.reclaim():
            pass
        trio.lowlevel.remove_instrument(work)
        assert store.statistics().levels == (0, 1)
    most_entries_of_a_block = 2 * limits.RUN_BLOCK_BYTES // 30
    assert 0 < work.worst["entries encoded"] <= most_entries_of_a_block
    assert 0 < work.worst["blocks decoded"] <= 3
    assert 0 < work.worst["keys filtered"] <= 256
    assert 0 < work.worst["parts of a delta"] <= 2
    assert 0 < work.worst["places let go of"] <= 512
    assert 0 < work.worst["keys looked for below"] <= 256
    assert 0 < work.worst["entries let go of"] <= 128
    assert 0 < work.worst["pieces moved"] <= 16
    assert 0 < work.worst["bytes moved"] <= 512 * KIB


async def overwritten(store: Store, count: int, rounds: int) -> float:
    """Overwrite values of 20 KB for a while; the longest that a put took."""
    worst = 0.0
    for number in range(count * rounds):
        started = trio.current_time()
        await store.put(b"%05d" % (number * 7919 % count), bytes([number % 251]) * 20_000)
        worst = max(worst, trio.current_time() - started)
        if number % 16 == 0:
            await trio.sleep(0.001)
    return worst


async def test_overwriting_a_nearly_full_device_is_slowed_and_not_stopped() -> None:
    device = await formatted(24, extent_bytes=256 * KIB)
    async with Store.open(device) as store:
        count = store.space().free_bytes * 8 // 10 // 20_200
        worst = await overwritten(store, count, 6)
        assert store.health.reason == ""
        assert len(await content(store)) == count
    assert worst < 1.0


async def test_no_work_rests_while_a_writer_waits_for_any_of_it() -> None:
    """A merge that a checkpoint waits for, which reclamation waits for, and so on."""
    device = await formatted(24)
    async with Store.open(device) as store:
        debts = store._maintenance.debts
        paces = (debts.checkpoint_pace, debts.merge_pace, debts.space_pace)
        assert all(pace() < 0.5 for pace in paces)
        for wait in (debts.waited_for, debts.merges_awaited):
            with wait():
                assert all(pace() == 1.0 for pace in paces)
        assert all(pace() < 0.5 for pace in paces)


async def test_a_writer_does_not_wait_for_rests_of_a_merge() -> None:
    """On a device about to be called full the tree is merged for a writer, beside a merge in the
    background that rests: it takes a few seconds of rests, and the writer waits for none."""
    device = await formatted(24)
    async with Store.open(device) as store:
        for number in range(12_000):
            await store.put(b"%05d" % (number * 7919 % 6000), b"%d" % number * 12)
            if number % 16 == 0:
                await trio.sleep(0.001)
            if number % 3000 == 2999:
                await store.checkpoint()
        merging = store._maintenance.merging
        async with trio.open_nursery() as nursery:
            nursery.start_soon(merging.merge_all)
            await trio.sleep(0.02)
            entries = store._checkpointer.entries_written
            started = trio.current_time()
            await merging.squeeze()
            taken = trio.current_time() - started
            entries = store._checkpointer.entries_written - entries
        assert entries > 5000
        assert entries / limits.SLICE_COST_MAX * limits.REST_S_MAX > 0.2
        assert taken < 0.02
        assert store.statistics().levels.count(0) == len(store.statistics().levels) - 1


async def test_a_tree_that_could_not_be_merged_for_a_writer_is_for_a_later_one() -> None:
    """Not only when it has grown by as much as is worth a merge."""
    device = await formatted(24)
    async with Store.open(device, options=MANUAL) as store:
        for number in range(12_000):
            await store.put(b"%05d" % (number * 7919 % 6000), b"%d" % number * 12)
            if number % 6000 == 5999:
                await store.checkpoint()
        maintenance, space = store._maintenance, store._extents.space
        assert 2 * await store._checkpointer.garbage_bytes() > space.total_bytes // 64
        maintenance.debts._merges_from = math.inf
        await maintenance.merging.squeeze()
        before = space.tree_bytes
        maintenance.debts._merges_from = 0.0
        for number in range(30):
            await store.put(b"new %d" % number, bytes(200))
        await maintenance.merging.squeeze()
        assert space.tree_bytes < before


async def test_a_tree_that_hides_nothing_is_not_merged_for_a_writer() -> None:
    """However large it is: sampling says that nothing would come back."""
    device = await formatted(24)
    async with Store.open(device, options=MANUAL) as store:
        for number in range(9000):
            await store.put(b"%08x" % (number * 2654435761 % 2**32), b"%d" % number * 12)
            if number % 4500 == 4499:
                await store.checkpoint()
        space = store._extents.space
        assert store._checkpointer.hidden_bytes_max > space.total_bytes // 128
        before = store._checkpointer.entries_written
        await store._maintenance.merging.squeeze()
        assert store._checkpointer.entries_written == before


async def test_a_writer_that_is_cancelled_while_it_waits_leaves_nothing_behind() -> None:
    device = await formatted(24, extent_bytes=256 * KIB)
    async with Store.open(device) as store:
        count = store.space().free_bytes * 9 // 10 // 20_200
        await overwritten(store, count, 2)
        cancelled = number = 0
        while cancelled < 20:  # nothing else runs, so sooner or later there is nothing ready
            with trio.move_on_after(0) as scope:
                await store.put(b"%05d" % (number % count), b"new" * 6000)
            cancelled += scope.cancelled_caught
            number += 1
        assert store._maintenance.debts.waiting == 0
        await overwritten(store, count, 1)
        assert store.health.reason == ""


@pytest.mark.expected_warnings("merging is put off", "a run cannot be merged")
async def test_rot_in_the_tree_does_not_make_a_store_read_only() -> None:
    device = await formatted(64)
    async with opened(device) as store:
        await fill_a_level(store)
        rotten = store._tree.runs[0].segments[0].index.blocks[0]
        device.rot(store.identity.extent_offset(rotten.extent) + rotten.offset + 300, 1)
    async with Store.open(device) as store:
        await trio.sleep(120)
        assert store.health.reason == ""
        await store.put(b"more", b"value")
        await store.sync()
        assert await store.get(b"00499") == b"3" * 50


class NeverAll(list[Extent]):
    """All extents, of which any may be looked at, but not one after the other."""

    def __iter__(self) -> Iterator[Extent]:
        raise AssertionError("every extent is looked at")


async def test_nothing_in_daily_work_looks_at_every_extent() -> None:
    """There may be tens of thousands: commits, checkpoints, merges, reclamation, evacuation, and
    superblock logs that are started afresh."""
    device = await formatted(64, extent_bytes=256 * KIB)
    async with opened(device) as store:
        store._extents.all = NeverAll(store._extents.all)
        for _ in range(2):
            for number in range(2000):
                await store.put(b"value %04d" % number, bytes(5 * KIB))
            await store.checkpoint()
        for number in range(2000):
            if number % 3:
                await store.delete(b"value %04d" % number)
        await store.sync()
        freed = 0
        while step := await store.reclaim():
            freed += step
        assert freed > 8
        assert store._evacuator.moved_bytes > 0
        while await store.compact():
            pass
        resets = device.counts.resets
        while device.counts.resets == resets:
            await store.sync(await store._committer.write_record())
        crashed = device.power_cut()
    for each in (crashed, device):
        async with opened(each) as store:
            assert len(await content(store)) == 2000 // 3 + 1


async def test_live_bytes_of_as_many_extents_as_there_may_be_are_encoded_in_slices() -> None:
    count = limits.EXTENT_COUNT_MAX
    live = array("Q", [number % 5 * 1000 for number in range(count)])
    snapshot = UsageSnapshot(live, array("Q", range(count)))
    slices = Slices()
    steps = 0

    async def take_turns() -> None:
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        data = await snapshot.encoded(slices)
        nursery.cancel_scope.cancel()
    found = decode_manifest(encode_manifest(Manifest(7, (), ()), data)).usage
    assert found == tuple(Usage(each, each, live[each]) for each in range(count) if live[each])
    assert steps >= count // 512
