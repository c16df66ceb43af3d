"""A block of the tree that the device could not read had an idle disk write for ever.

A merge that met it was tried again at each commit interval, and each time wrote anew all that lies
before it; no other runs were merged, as this merge came first. Rot was known to stay, a read error
was taken for one that passes. Found by an experiment.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from shardfs import limits
from shardfs.checking.faults import Fault
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.lsm.set_aside import RETRY_FIRST_S
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import DeviceError

SIZE_BYTES = 64 * limits.MIB
INTERVAL_S = 2.0


async def put_some(store: Store, run: int, count: int) -> None:
    """A run of its own, with keys between those of the others."""
    for number in range(count):
        with suppress(DeviceError):  # a filter says that what cannot be read may have the key
            await store.put(b"key %05d %02d" % (number * 7919 % 10007, run), b"v" * 200)
    await store.checkpoint()


@pytest.mark.expected_warnings("a run cannot be merged", "merging is put off")
async def test_the_others_are_merged_and_it_is_tried_again_after_a_while() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await format_device(device, plan(SIZE_BYTES, 512))
    async with Store.open(device, options=StoreOptions(commit_interval_s=INTERVAL_S)) as store:
        await put_some(store, 0, 700)
        (oldest,) = store._tree.runs
        locators = list(oldest.segments[-1].locators)
        bad = locators[len(locators) * 3 // 4]
        start = store.identity.extent_offset(bad.extent) + bad.offset
        device.faults.add(Fault("read", start, start + 4096, times=None))
        store._parts.cache.limit(0)
        for run in range(1, 3 * limits.RUNS_PER_LEVEL_MAX):
            await put_some(store, run, 40)
        await trio.sleep(60 * INTERVAL_S)
        runs = store._tree.runs
        assert runs[0].run_id == oldest.run_id
        assert len(runs) <= limits.RUNS_PER_LEVEL_MAX + 1, "the others were not merged"
        before = device.counts.write_bytes
        await trio.sleep(10 * RETRY_FIRST_S)
        written = device.counts.write_bytes - before
        assert written <= 4 * 2 * oldest.total_bytes, "again and again"
        device.faults._faults.clear()
        await trio.sleep(10 * RETRY_FIRST_S)
        for run in range(3 * limits.RUNS_PER_LEVEL_MAX, 5 * limits.RUNS_PER_LEVEL_MAX):
            await put_some(store, run, 40)
        await trio.sleep(60 * INTERVAL_S)
        assert oldest.run_id not in {run.run_id for run in store._tree.runs}, "not tried again"
