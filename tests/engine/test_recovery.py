"""Recovery at the corners: full logs, torn parts, junk in spares, cuts at every operation."""

from __future__ import annotations

import random

import pytest

from shardfs import limits
from shardfs.checking.power_cuts import PowerCutPoint
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.store import Store
from tests.engine.stores import content, formatted, opened, tidy_up

KIB = limits.KIB
State = dict[bytes, bytes]
both = pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])


class Witness:
    """Notes a power cut point at each operation, and the states that it may leave."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.states: list[State] = [{}]
        self.durable = 0
        self.points: list[tuple[PowerCutPoint, int]] = []
        device.observer = lambda _: self.points.append((device.power_cut_point(), self.durable))

    async def put(self, store: Store, key: bytes, value: bytes) -> None:
        self.states.append({**self.states[-1], key: value})
        await store.put(key, value)

    async def sync(self, store: Store) -> None:
        count = len(self.states) - 1
        await store.sync()
        self.durable = count

    async def check(self, rng: random.Random, stride: int = 1) -> None:
        """Every point, as nothing, everything and a random part of what is unflushed survives."""
        self.device.observer = None
        for point, durable in self.points[::stride]:
            for choice in {(), point.everything(), *point.choices(5, rng)}:
                after = self.device.after_power_cut(point, choice)
                async with opened(after) as store:
                    found = await content(store)
                    assert found in self.states[durable:], f"step {point.step} choice {choice}"
                    await store.put(b"after the cut", bytes(5000))
                async with opened(after.power_cut()) as store:
                    again = await content(store)
                    again.pop(b"after the cut")
                    assert again == found


@both
async def test_a_cut_at_every_operation_of_ordinary_use(zoned: bool) -> None:
    device = await formatted(2, extent_bytes=64 * KIB, zoned=zoned)
    rng = random.Random(0)
    async with opened(device) as store:
        witness = Witness(device)
        for number in range(14):
            await witness.put(store, b"k%d" % (number % 5), rng.randbytes(rng.choice((9, 20_000))))
            if number % 3 == 0:
                await witness.sync(store)
            if number % 5 == 4:
                await tidy_up(store)
                witness.durable = len(witness.states) - 1
    await witness.check(rng, stride=2)


@both
async def test_a_cut_at_every_operation_while_the_superblock_logs_start_afresh(
    zoned: bool,
) -> None:
    device = await formatted(2, extent_bytes=64 * KIB, zoned=zoned)
    async with opened(device) as store:
        resets = device.counts.resets
        number = 0
        while device.counts.resets < resets + 4:
            if device.observer is None and max(store._committer._superblock._ends) > 50 * KIB:
                witness = Witness(device)
                witness.states = [await content(store)]
            if device.observer is not None:
                await witness.put(store, b"k%d" % (number % 4), b"%d" % number)
                await witness.sync(store)
            else:
                await store.put(b"k%d" % (number % 4), b"%d" % number)
                await store.sync()
            if number % 8 == 7:
                await store.checkpoint()
                await store.reclaim()
            number += 1
        assert len(witness.points) > 10
    await witness.check(random.Random(1), stride=2)


@both
async def test_deltas_of_many_parts_are_all_or_nothing(zoned: bool) -> None:
    """Parts cross from extent to extent; a cut between them leaves junk in the later ones."""
    device = await formatted(4, extent_bytes=64 * KIB, zoned=zoned)
    async with opened(device) as store:
        witness = Witness(device)
        for number in range(3):
            state = dict(witness.states[-1])
            batch = store.batch()
            for key in range(20):
                state[b"%02d" % key] = bytes([number + 1]) * 4500
                batch.put(b"%02d" % key, state[b"%02d" % key])
            witness.states.append(state)
            store.apply(batch)
            await witness.sync(store)
    await witness.check(random.Random(2))


@pytest.mark.parametrize("spare_bytes", range(0, 3 * limits.BLOCK_BYTES, 600))
@both
async def test_the_log_may_end_anywhere_near_the_end_of_its_extent(
    spare_bytes: int, zoned: bool
) -> None:
    device = await formatted(4, extent_bytes=64 * KIB, zoned=zoned)
    expected: State = {}
    async with opened(device) as store:
        for number in range(18):
            size = 4096 - 300 if number % 4 else 4096 - 300 + spare_bytes // 3
            batch = store.batch()
            expected[b"%d" % (number % 6)] = bytes([number + 1]) * size
            batch.put(b"%d" % (number % 6), expected[b"%d" % (number % 6)])
            store.apply(batch)
            await store.sync()
            if number == 9:
                await store.checkpoint()
            for after in (
                device.power_cut(),
                device.power_cut(device.power_cut_point().everything()),
            ):
                async with opened(after) as reopened:
                    assert await content(reopened) == expected


@both
async def test_cuts_in_one_life_after_another(zoned: bool) -> None:
    """Junk of many unfinished commits piles up behind the log and is never taken for it."""
    device = await formatted(4, extent_bytes=64 * KIB, zoned=zoned)
    rng = random.Random(5)
    expected: State = {}
    for life in range(40):
        async with opened(device) as store:
            assert await content(store) in (expected, {**expected, b"lost": b"%d" % (life - 1)})
            expected = await content(store)
            key = b"k%d" % rng.randrange(5)
            await store.put(key, b"%d" % life)
            await store.sync()
            expected[key] = b"%d" % life
            points: list[PowerCutPoint] = []
            await store.put(b"lost", b"%d" % life)
            device.observer = lambda _: points.append(device.power_cut_point())  # noqa: B023
            await store.sync()
            device.observer = None
        point = points[0]
        choice = rng.choice(list(point.choices(6, rng)))
        device = device.after_power_cut(point, choice)


@both
async def test_a_rider_that_was_torn_takes_its_delta_with_it(zoned: bool) -> None:
    device = await formatted(4, extent_bytes=64 * KIB, zoned=zoned)
    async with opened(device) as store:
        await store.put(b"old", b"o" * 5000)
        await store.sync()
        points: list[PowerCutPoint] = []
        device.observer = lambda _: points.append(device.power_cut_point())
        await store.put(b"new", b"n" * 12_000)
        await store.sync()
        device.observer = None
    final = points[-1]
    data, *rest = (each for each in final.unflushed if each.kind == "write")
    for lost in (data, *rest):
        choice = tuple(each for each in final.everything() if each.step != lost.step)
        async with opened(device.after_power_cut(final, choice)) as store:
            found = await content(store)
            assert found[b"old"] == b"o" * 5000
            assert found.get(b"new") in (None, b"n" * 12_000)


@pytest.mark.expected_warnings("now read-only")
async def test_damage_in_the_durable_log_is_not_taken_for_a_crash() -> None:
    device = await formatted(24)
    async with opened(device) as store:
        for number in range(5):
            await store.put(b"%d" % number, b"v" * 200)
            await store.sync()
        log = store._extents.all[store._committer.root.log_extent or 2]
        offset = store.identity.extent_offset(log.index)
    device.rot(offset + limits.BLOCK_BYTES + 60, 8)
    async with opened(device) as store:
        assert "lost or damaged" in store.health.reason
        assert await store.get(b"0") == b"v" * 200
