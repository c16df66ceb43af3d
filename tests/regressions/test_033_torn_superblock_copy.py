"""fsck called a superblock copy damaged that a power cut had torn while it was written anew.

Where the first sector of the old log had survived and later ones were new, nothing told the tear
from rot. Now a log says that it is given up before it is written over, and a copy whose first
sector is the old one is damaged when it is not whole. Found by
test_power_cuts.py::test_many_more_states[everything-100-conventional].
"""

from __future__ import annotations

import pytest

from shardfs import limits
from shardfs.checking.power_cuts import Survivor
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.fsck import check_store
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.engine.superblock import read_copy
from tests.crash.harness import (
    EXTENT_BYTES,
    History,
    Recorder,
    empty_device,
    open_quietly,
    run_in_order,
)

SECTOR_BYTES = 512
RECORD_SECTORS = 3


async def write_a_little(device: SimulatedDevice) -> None:
    async with open_quietly(device) as store:
        for number in range(8):
            await store.sync(await store.put(b"%d" % number, bytes(20_000)))
        await store.checkpoint()


async def open_and_close(device: SimulatedDevice) -> None:
    async with open_quietly(device):
        pass


async def findings(device: SimulatedDevice) -> tuple[list[str], list[str]]:
    options = StoreOptions(read_only=True, background=False)
    async with Store.open(device, options=options) as store:
        report = await check_store(store)
    return [str(each) for each in report.findings], report.notes


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
def test_a_copy_torn_by_a_cut_is_no_damage(zoned: bool) -> None:
    device = empty_device(zoned=zoned)
    run_in_order(write_a_little, device)
    recorder = Recorder(device, History())
    run_in_order(open_and_close, device)
    torn = 0
    for moment in recorder.moments:
        # A zone takes a prefix of what is written.
        for write in moment.point.unflushed[: 1 if zoned else None]:
            sectors = write.length // SECTOR_BYTES
            starts = range(1) if zoned else range(min(sectors, RECORD_SECTORS))
            for start in starts:
                for end in range(start + 1, min(sectors, start + RECORD_SECTORS) + 1):
                    choice = (Survivor(write.step, ((start, end),)),)
                    crashed = device.after_power_cut(moment.point, choice)
                    found, notes = run_in_order(findings, crashed)
                    assert found == [], f"{moment.describe()}, surviving {choice}"
                    torn += any("cut off by a crash" in note for note in notes)
    assert torn > 0


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("sector", range(2))
def test_a_copy_that_rotted_is_damage(copy: int, sector: int) -> None:
    device = empty_device()
    run_in_order(write_a_little, device)
    device.rot(copy * EXTENT_BYTES + sector * SECTOR_BYTES + 200)
    found, _ = run_in_order(findings, device)
    assert [each for each in found if each.startswith("E1")] != []


def test_rot_is_damage_also_while_the_newest_record_is_a_snapshot() -> None:
    """Both logs begin with one, and a cut may come before anything follows. What rots is the older
    one: the newest record of all, damaged, looks as if a cut had torn it."""
    device = empty_device()
    run_in_order(write_a_little, device)
    recorder = Recorder(device, History())
    run_in_order(open_and_close, device)
    rotten = 0
    for moment in recorder.moments:
        crashed = device.after_power_cut(moment.point, ())
        copies = [run_in_order(read_copy, crashed, start) for start in (0, EXTENT_BYTES)]
        if not all(each.last is not None and each.last.snapshot for each in copies):
            continue  # one is not whole, or something follows
        assert run_in_order(findings, crashed) == ([], [])
        crashed.rot(200)
        found, notes = run_in_order(findings, crashed)
        assert any(each.startswith("E1") for each in found), notes
        rotten += 1
    assert rotten > 0


def test_a_log_that_is_full_is_given_up_too() -> None:
    """Started afresh while the store is in use: the log begins with what the last record left."""
    device = empty_device()
    recorder = Recorder(device, History())

    async def fill_the_log() -> None:
        async with open_quietly(device) as store:
            for number in range(40):
                await store.sync(await store.put(b"%d" % (number % 4), bytes(3000)))
                await store.sync(await store._committer.write_record())

    run_in_order(fill_the_log)
    restarts = [
        moment
        for moment in recorder.moments
        if moment.operation.kind == "write" and moment.operation.offset == 0
    ]
    assert len(restarts) >= 4  # given up and begun, at the opening and when the log was full
    for moment in recorder.moments:
        firsts = [each for each in moment.point.unflushed if each.offset in (0, EXTENT_BYTES)]
        for write in firsts:
            crashed = device.after_power_cut(moment.point, (Survivor(write.step, ((1, 2),)),))
            assert run_in_order(findings, crashed)[0] == [], moment.describe()


def test_the_head_of_a_long_record_may_be_torn_as_well() -> None:
    """The checksums of a snapshot of thousands of extents take more than a sector."""
    device = SimulatedDevice(24_000 * limits.MIB)

    async def make() -> None:
        identity = plan(device.size_bytes, SECTOR_BYTES, extent_bytes=2 * limits.MIB)
        await format_device(device, identity)
        await write_a_little(device)

    run_in_order(make)
    recorder = Recorder(device, History())
    run_in_order(open_and_close, device)
    torn = [
        (moment, write)
        for moment in recorder.moments
        for write in moment.point.unflushed
        if write.offset == 0 and write.length > 32 * limits.KIB
    ]
    assert torn
    for moment, write in torn:
        crashed = device.after_power_cut(moment.point, (Survivor(write.step, ((0, 1),)),))
        found, notes = run_in_order(findings, crashed)
        assert found == []
        assert any("cut off by a crash" in note for note in notes)
    device.rot(SECTOR_BYTES)  # in the table of checksums
    assert any(each.startswith("E1") for each in run_in_order(findings, device)[0])
