"""fuse/departure.py: when a mount goes away, and who waits for that."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from shardfs.engine.health import Health
from shardfs.errors import CorruptionError, DeviceError, NoSpaceError, ReadOnlyError
from shardfs.fuse.departure import DETACH_S, Departure
from shardfs.fuse.mount_options import ErrorPolicy

READ = DeviceError("read", 0, 4096, errno.EIO)
OTHERS = (CorruptionError("rot"), NoSpaceError("full"), KeyError("a bug"))


@pytest.mark.parametrize("policy", [ErrorPolicy.CONTINUE, ErrorPolicy.REMOUNT_READ_ONLY])
async def test_who_stays(policy: ErrorPolicy) -> None:
    health = Health()
    departure = Departure(health, policy)
    for error in (READ, ReadOnlyError("asked for"), *OTHERS):
        await departure.meet(error)
    assert not departure.begun.is_set() and health.is_writable
    health.make_read_only("a test wants it", expected=True)
    assert not departure.reason


async def test_trouble_of_one_file_is_not_the_devices() -> None:
    health = Health()
    departure = Departure(health, ErrorPolicy.UNMOUNT)
    for error in OTHERS:
        await departure.meet(error)
    assert not departure.begun.is_set() and health.is_writable


@pytest.mark.expected_warnings("the store is now read-only")
async def test_answers_wait_until_the_mount_is_gone() -> None:
    health = Health()
    departure = Departure(health, ErrorPolicy.UNMOUNT)
    answered: list[Exception] = []

    async def request(error: Exception) -> None:
        await departure.meet(error)
        answered.append(error)

    refused = ReadOnlyError("a consequence")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, READ)
        await departure.begun.wait()
        assert not health.is_writable, "nothing may change any more, before anybody is answered"
        assert str(READ) in health.reason and str(READ) in departure.reason
        nursery.start_soon(request, refused)
        await trio.testing.wait_all_tasks_blocked()
        assert answered == []
        departure.detached.set()
    assert set(answered) == {READ, refused}
    await departure.meet(KeyError("no trouble of the device"))


@pytest.mark.expected_warnings("the store is now read-only")
async def test_no_answer_waits_for_ever() -> None:
    departure = Departure(Health(), ErrorPolicy.UNMOUNT)
    before = trio.current_time()
    await departure.meet(READ)
    assert trio.current_time() - before == pytest.approx(DETACH_S)


async def test_a_failure_in_the_background_is_enough() -> None:
    health = Health()
    departure = Departure(health, ErrorPolicy.UNMOUNT)
    health.make_read_only("a flush failed", expected=True)
    assert departure.begun.is_set() and departure.reason == "a flush failed"
    assert health.reason == "a flush failed", "the first reason is kept"
