"""The power is cut at every step of a workload; what opens afterwards keeps every promise."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from shardfs import limits
from shardfs.checking.power_cuts import Survivor
from shardfs.checking.simulated_device import SimulatedDevice
from tests.crash import workloads
from tests.crash.harness import (
    History,
    Moment,
    Recorder,
    check_moments,
    check_recovery_cuts,
    empty_device,
    open_quietly,
    read_content,
    run_in_order,
)

Workload = Callable[[SimulatedDevice, History], Awaitable[None]]

WORKLOADS: dict[str, Workload] = {
    "everything": workloads.everything,
    "many_tasks": workloads.many_tasks,
    "large_batches": workloads.large_batches,
    "merges": workloads.merges,
    "full_device": workloads.full_device,
    "parts_overwritten": workloads.parts_overwritten,
    "in_the_background": workloads.in_the_background,
}
ZONED = pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])


def live(device: SimulatedDevice, workload: Workload, seed: int) -> list[Moment]:
    """Runs a workload to its end; every moment of it."""
    recorder = Recorder(device, History())
    run_in_order(workload, device, recorder.history, seed=seed)
    return recorder.moments


def cut_everywhere(
    device: SimulatedDevice, workload: Workload, *, states: int, seed: int, goes_on_every: int = 8
) -> int:
    """How many crash states were checked."""
    moments = live(device, workload, seed)
    check = partial(
        check_moments,
        device,
        moments,
        states_per_moment=states,
        rng=random.Random(seed),
        goes_on_every=goes_on_every,
    )
    count: int = run_in_order(check, seed=seed)
    assert count > len(moments)
    return count


@ZONED
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_cut_at_every_step(name: str, zoned: bool) -> None:
    states = {"full_device": 3, "parts_overwritten": 2}.get(name, 6)
    cut_everywhere(empty_device(zoned=zoned, seed=1), WORKLOADS[name], states=states, seed=1)


@ZONED
def test_every_subset_of_what_is_unflushed(zoned: bool) -> None:
    """A short life has few unflushed writes at a time: here all of their subsets are opened."""
    device = empty_device(zoned=zoned, seed=2)
    moments = live(device, workloads.small, 2)
    assert max(len(moment.point.unflushed) for moment in moments) <= 6
    check = partial(
        check_moments, device, moments, states_per_moment=64, rng=random.Random(2), goes_on_every=2
    )
    run_in_order(check)


@ZONED
def test_sectors_of_4096_bytes(zoned: bool) -> None:
    device = empty_device(zoned=zoned, sector_bytes=4096, seed=3)
    cut_everywhere(device, workloads.many_tasks, states=8, seed=3)


@ZONED
def test_data_that_is_flushed_ahead_of_its_delta(
    zoned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RIDER_BYTES_MAX", 16 * 1024)
    cut_everywhere(empty_device(zoned=zoned, seed=4), workloads.large_batches, states=8, seed=4)


@ZONED
def test_a_second_cut_while_the_first_is_recovered_from(zoned: bool) -> None:
    device = empty_device(zoned=zoned, seed=5)
    moments = live(device, workloads.small, 5)
    check = partial(
        check_recovery_cuts,
        device,
        moments,
        states_per_moment=3,
        cuts_per_recovery=2,
        rng=random.Random(5),
    )
    run_in_order(check)


def test_a_delta_that_was_refused_once_is_refused_for_ever() -> None:
    """Its data was torn, and data behind it is new: it must not count when its number does."""
    device = empty_device(seed=0)
    moments = live(device, workloads.small, 3)
    torn = next(
        moment
        for moment in moments
        if moment.operation.length == 8192
        and [each.length for each in moment.point.unflushed] == [4096, 8192]
    )
    delta, data = torn.point.unflushed
    choice = (Survivor(delta.step), Survivor(data.step, ((0, 8),)))

    async def go_on() -> None:
        crashed = device.after_power_cut(torn.point, choice)
        async with open_quietly(crashed) as store:
            content = await read_content(store)
            await store.sync(await store.put(b"new", bytes(3000)))
        async with open_quietly(crashed) as store:
            assert await read_content(store) == {**content, b"new": bytes(3000)}

    run_in_order(go_on)


def test_the_same_seed_gives_the_same_life_and_the_same_states() -> None:
    traces = []
    for _ in range(2):
        device = empty_device(seed=6)
        moments = live(device, workloads.many_tasks, 6)
        choices = [list(moment.point.choices(8, random.Random(6))) for moment in moments]
        traces.append((device.trace, choices, device.image()))
    assert traces[0] == traces[1]


@pytest.mark.slow
@ZONED
@pytest.mark.parametrize("seed", range(100, 106))
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.timeout(1200)
def test_many_more_states(name: str, seed: int, zoned: bool) -> None:
    device = empty_device(
        zoned=zoned,
        sector_bytes=(512, 4096)[seed % 2],
        seed=seed,
        checkpoints_max=1 + seed % 5,
    )
    cut_everywhere(device, WORKLOADS[name], states=40, seed=seed, goes_on_every=3)


@pytest.mark.slow
@ZONED
@pytest.mark.parametrize("seed", range(200, 203))
@pytest.mark.timeout(1200)
def test_many_more_second_cuts(seed: int, zoned: bool) -> None:
    device = empty_device(zoned=zoned, seed=seed)
    moments = live(device, workloads.small, seed)
    check = partial(
        check_recovery_cuts,
        device,
        moments,
        states_per_moment=10,
        cuts_per_recovery=10,
        rng=random.Random(seed),
    )
    run_in_order(check)
