"""One request of the device fails, each in turn: what was persistent stays, and the store says so.

A write or flush error ends writing for good (device.I2); the process goes on, closes in order,
and a later open, on a device that works again or after a power cut, keeps every promise.
"""

from __future__ import annotations

import random

import pytest

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.errors import ShardfsError
from tests.crash import workloads
from tests.crash.harness import History, causes_of, check_state, empty_device, run_in_order

ZONED = pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
REQUESTS_MAX = 400

pytestmark = pytest.mark.expected_warnings("shardfs.engine")


async def until_it_fails(device: SimulatedDevice, history: History, kind: str) -> None:
    """The workload, until the error stops it: by an error of ours, and by nothing else."""
    try:
        if kind == "read":
            await workloads.everything(device, history, rounds=3)
        else:
            await workloads.many_tasks(device, history, tasks=2)
    except (ShardfsError, ExceptionGroup) as error:
        strange = [each for each in causes_of(error) if not isinstance(each, ShardfsError)]
        assert not strange, f"the error came out as {strange}"


def counted(device: SimulatedDevice, kind: str) -> int:
    counts = device.counts
    return {"read": counts.reads, "write": counts.writes, "flush": counts.flushes}[kind]


@ZONED
@pytest.mark.parametrize("kind", ["write", "flush", "read"])
def test_each_request_fails_once(kind: str, zoned: bool) -> None:
    for number in range(REQUESTS_MAX):
        device = empty_device(zoned=zoned, seed=number)
        history = History()
        device.fail(kind, skip=number)
        run_in_order(until_it_fails, device, history, kind, seed=number)
        if counted(device, kind) <= number:
            assert number > 5, "the workload does too little"
            return
        persistent = history.poll()
        states = history.states[persistent:]
        point = device.power_cut_point()
        for choice in point.choices(2, random.Random(number)):
            run_in_order(check_state, device.after_power_cut(point, choice), states)
        run_in_order(check_state, device.after_kill(point), states)
    raise AssertionError("the workload never ends")
