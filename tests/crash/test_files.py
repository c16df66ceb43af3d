"""Files across power cuts: what fsync and rename promised, at every operation of a script.

In each state the model allows what is found: data and size of what was fsynced; rename old or
new; nothing that was never written. Every record of the file system fits the others.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from shardfs.checking.models.file_model import FileModel
from shardfs.checking.power_cuts import Operation, PowerCutPoint
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.writeback import Writeback
from tests.crash.file_workload import FileWorkload, find_files
from tests.crash.harness import empty_device, open_quietly, run_in_order

STATES_PER_MOMENT = 40


@dataclass(frozen=True, slots=True)
class FileMoment:
    """What a cut at one operation may leave, and what is promised then."""

    operation: Operation
    point: PowerCutPoint
    model: FileModel


async def record(device: SimulatedDevice) -> list[FileMoment]:
    """Run the script once; a moment for each operation the device is given."""
    moments: list[FileMoment] = []

    async with open_quietly(device) as store:
        file_system = await FileSystem.open(store)
        await store.sync()
        workload = FileWorkload(store, file_system)

        def observe(operation: Operation) -> None:
            model = workload.model.copy()
            moments.append(FileMoment(operation, device.power_cut_point(), model))

        device.observer = observe
        await workload.run()
        await file_system.end()
    device.observer = None
    return moments


async def check(origin: SimulatedDevice, moments: list[FileMoment], seed: int) -> int:
    """Open sampled states of each moment; how many were looked at."""
    rng = random.Random(seed)
    count = 0
    for moment in moments:
        for choice in moment.point.choices(STATES_PER_MOMENT, rng):
            found, trouble = await find_files(origin.after_power_cut(moment.point, choice))
            operation = moment.operation
            where = (
                f"cut at step {operation.step} ({operation.kind} at byte {operation.offset}), "
                f"surviving {choice}"
            )
            assert not trouble, f"{where}: {trouble}"
            try:
                moment.model.after_crash(found)
            except AssertionError as error:
                raise AssertionError(f"{where}: {error}") from error
            count += 1
    return count


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_power_cut_at_every_operation(sector_bytes: int, zoned: bool) -> None:
    device = empty_device(sector_bytes=sector_bytes, zoned=zoned, checkpoints_max=1)
    moments = run_in_order(record, device)
    assert len(moments) > 60
    assert run_in_order(check, device, moments, 1) > 3 * len(moments)


async def fsync_without_flush(self: Writeback, ino: int) -> None:
    """A bug: the data of the file is left in memory."""
    await self._store.sync()


async def fsync_without_sync(self: Writeback, ino: int) -> None:
    """A bug: the data reaches the store, and nothing makes it durable."""
    await self.flush(ino)


@pytest.mark.parametrize(
    ("method", "bug"),
    [
        ("fsync", fsync_without_flush),
        ("fsync", fsync_without_sync),
    ],
)
def test_planted_bugs_are_caught(
    method: str, bug: Callable[[Writeback, int], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writeback, method, bug)
    device = empty_device()
    moments = run_in_order(record, device)
    with pytest.raises(AssertionError, match="cut at step"):
        run_in_order(check, device, moments, 1)
