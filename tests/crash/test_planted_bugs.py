"""The crash tests can fail: bugs planted in the engine on purpose are each found.

A harness that finds nothing may be looking at nothing. Each test here breaks one rule of the
engine and expects the check that the rule answers for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from shardfs import limits
from shardfs.checking.canaries import Canary, catalog
from shardfs.checking.simulated_device import SimulatedDevice, SimulationError
from shardfs.engine import chunks, framing
from shardfs.engine.commit import Committer
from shardfs.engine.dependency import PERSISTENT
from shardfs.engine.extent import Extent
from shardfs.engine.extents import Extents
from shardfs.engine.lsm.delta import cut_parts
from shardfs.engine.scheduler import Scheduler
from tests.crash import workloads
from tests.crash.harness import (
    CrashFinding,
    History,
    Recorder,
    causes_of,
    check_moments,
    empty_device,
    open_quietly,
    run_in_order,
)
from tests.crash.test_power_cuts import Workload

WORKLOADS: tuple[Workload, ...] = (
    workloads.everything,
    workloads.many_tasks,
    workloads.large_batches,
)


def first_finding(
    *, zoned: bool = False, states: int = 12, lives: Sequence[Workload] = ()
) -> BaseException:
    """What the harness says of the engine as it is now; fails when it says nothing."""
    for seed, workload in itertools.product((1, 2), lives or WORKLOADS):
        device = empty_device(zoned=zoned, seed=seed)
        recorder = Recorder(device, History())
        try:
            run_in_order(workload, device, recorder.history, seed=seed)
            check = partial(
                check_moments,
                device,
                recorder.moments,
                states_per_moment=states,
                rng=random.Random(seed),
                goes_on_every=2,
            )
            run_in_order(check)
        except (CrashFinding, ExceptionGroup, SimulationError) as finding:
            return causes_of(finding)[0]
    raise AssertionError("the planted bug was not found")


def canary(name: str) -> Canary:
    """The mistake of this name in the catalog."""
    return next(each for each in catalog() if each.name == name)


@pytest.fixture(autouse=True)
def _formatted_before_the_bug() -> None:
    for zoned in (False, True):
        empty_device(zoned=zoned)


def test_a_flush_that_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    real_flush = SimulatedDevice.flush

    async def flush(self: SimulatedDevice) -> None:
        self.counts.flushes += 1
        if self.counts.flushes % 3:
            await real_flush(self)

    monkeypatch.setattr(SimulatedDevice, "flush", flush)
    assert isinstance(first_finding(), CrashFinding)


def test_persistent_once_written() -> None:
    """A dependency that resolves when the device has taken the write, before any flush."""
    with canary("persistent-once-written").planted():
        assert isinstance(first_finding(), CrashFinding)


def test_writes_that_do_not_wait_for_their_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data too large to ride along must be persistent before the delta that refers to it."""
    monkeypatch.setattr(limits, "RIDER_BYTES_MAX", 4096)
    real_submit = Scheduler.submit

    def submit(self: Scheduler, *arguments: Any) -> None:
        extent, offset, buffers, length, _before, persistent, on_written = arguments
        real_submit(self, extent, offset, buffers, length, PERSISTENT, persistent, on_written)

    monkeypatch.setattr(Scheduler, "submit", submit)
    assert isinstance(first_finding(), CrashFinding)


def test_riders_that_are_not_verified() -> None:
    with canary("rider-not-verified").planted():
        assert "do not match their checksum" in str(first_finding())


def test_riders_that_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(tails: Any, _riders: Any, *rest: Any) -> Any:
        return cut_parts(tails, [], *rest)

    monkeypatch.setattr("shardfs.engine.commit.cut_parts", cut)
    assert "do not match their checksum" in str(first_finding())


def test_checksums_that_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (framing, chunks):
        monkeypatch.setattr(module, "verify_granules", lambda *_: None)
    assert isinstance(first_finding(), CrashFinding)


def test_extents_freed_before_what_dropped_them_is_durable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_dead = Extents.dead

    def dead(self: Extents, _durable: int, *arguments: Any, **options: Any) -> list[Extent]:
        return real_dead(self, 2**60, *arguments, **options)

    async def unsynced(device: SimulatedDevice, history: History) -> None:
        """Overwrites a lot, and reclaims before anything of it is durable."""
        async with open_quietly(device) as opened:
            client = workloads.Client(opened, history)
            for life, number in itertools.product(range(3), range(12)):
                await client.put(b"%d" % number, workloads.value_of(life, 15 * 1024))
                if number == 11:
                    await opened.sync()
                if number % 4 == 3:
                    await opened.reclaim()

    monkeypatch.setattr(Extents, "dead", dead)
    assert isinstance(first_finding(lives=[unsynced]), CrashFinding)


def test_a_superblock_log_restarted_while_the_other_copy_is_unflushed() -> None:
    """Both copies afresh at a time: for a moment there is no whole one."""
    with canary("both-superblock-copies-at-once").planted():
        assert isinstance(first_finding(), CrashFinding)


def test_a_batch_split_over_two_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    real_cut = Committer._cut_delta

    def cut(self: Committer) -> Any:
        """Leaves the second half of what is pending for a delta of its own."""
        items = sorted(self._pending.items())
        if len(items) < 2 or self._riders:
            return real_cut(self)
        self._pending = dict(items[: len(items) // 2])
        result = real_cut(self)
        self._pending = dict(items[len(items) // 2 :])
        return result

    monkeypatch.setattr(Committer, "_cut_delta", cut)
    assert "no allowed state" in str(first_finding())


@pytest.mark.expected_warnings("shardfs.engine")
def test_a_write_before_the_write_pointer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on at the recorded pointer of a zone that holds more: only strict zones object."""
    real_begin = Extents.begin

    def begin(self: Extents) -> None:
        device = self._device
        self._device = SimulatedDevice(device.size_bytes)  # says: conventional
        real_begin(self)
        self._device = device

    monkeypatch.setattr(Extents, "begin", begin)
    assert "write pointer" in str(first_finding(zoned=True))


def test_nothing_is_found_where_nothing_is_planted() -> None:
    with pytest.raises(AssertionError, match="was not found"):
        first_finding(states=3, lives=[workloads.small])
