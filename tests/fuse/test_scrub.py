"""Scrub: it goes through all data at its rate, names what has rotted, and survives the mount."""

from __future__ import annotations

import logging

import pytest
import trio

from shardfs.checking.image_device import ImageDevice
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.store import Store
from shardfs.engine.tree_scrub import verify_tree
from shardfs.errors import UsageError
from shardfs.fuse.fsck import check_files
from shardfs.fuse.keys import SCRUB_KEY
from shardfs.fuse.scrub import Scrub, ScrubState, state_of
from tests.engine.stores import MANUAL
from tests.fuse.damage import EXTENT_BYTES, make_sample, places_of


async def scrubbed(store: Store, *, rate: int | None, seconds: float) -> dict[str, object]:
    scrub = Scrub(store, lambda: 0)
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub.run)
            if rate is not None:
                await scrub.handlers["scrub-start"]({"rate": rate})
            await trio.sleep(seconds / 2)
            while (await scrub.handlers["scrub-status"]({}))["state"] == "running":  # noqa: ASYNC110
                await trio.sleep(seconds / 20)
            nursery.cancel_scope.cancel()
    return await scrub.handlers["scrub-status"]({})


async def test_rot_is_named_and_a_pass_goes_on_after_the_mount(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")
    sample = await make_sample()
    image = bytearray(sample.image)
    start, length = max(sample.places["data"], key=lambda place: place[1])
    image[start + length - 10] ^= 1
    device = SimulatedDevice.from_image(bytes(image))
    begun = trio.current_time()
    async with Store.open(device, options=MANUAL) as store:
        first = await scrubbed(store, rate=100_000, seconds=2.0)
        assert first["state"] == "running" and 0 < int(str(first["verified_bytes"])) < 400_000
        assert trio.current_time() - begun >= 2.0
    async with Store.open(device, options=MANUAL) as store:
        last = await scrubbed(store, rate=None, seconds=600.0)
        assert last["state"] == "done"
        found = last["found"]
        assert isinstance(found, list) and len({each["ino"] for each in found}) == 1
        assert found[0]["path"] and sample.tree[found[0]["path"].lstrip("/")] is not None
        sizes = [data for data in sample.tree.values() if data is not None]
        assert int(str(last["verified_bytes"])) >= sum(map(len, sizes))
        assert (await check_files(store)).findings == [], "its record is known"


async def test_a_busy_mount_is_given_way_to() -> None:
    sample = await make_sample()
    requests = 0

    def count() -> int:
        nonlocal requests
        requests += 1
        return requests

    async with Store.open(SimulatedDevice.from_image(sample.image), options=MANUAL) as store:
        scrub = Scrub(store, count)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub.run)
            with pytest.raises(UsageError):
                await scrub.handlers["scrub-start"]({"rate": 0})
            await scrub.handlers["scrub-start"]({"rate": 1 << 40})
            await trio.sleep(10.5)
            busy = (await scrub.handlers["scrub-status"]({}))["verified_bytes"]
            paused = await scrub.handlers["scrub-pause"]({})
            await trio.sleep(10)
            assert paused["state"] == "paused"
            later = await scrub.handlers["scrub-status"]({})
            nursery.cancel_scope.cancel()
        assert 0 < busy <= 11 * 32768 and later["verified_bytes"] <= busy + 2 * 32768


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"null",
        b"[]",
        b'{"state": 7}',
        b'{"rate": -1}',
        b'{"cursor": "zz"}',
        b'{"x": 1}',
        b"\xff",
    ],
)
def test_what_is_no_state_is_a_fresh_one(record: bytes) -> None:
    assert state_of(record) == ScrubState()


@pytest.mark.parametrize("kind", ["manifest", "run index", "run block", "delta"])
async def test_rot_in_the_tree_is_named_and_gone_round(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")
    sample = await make_sample(40 if kind == "run block" else 24)
    device = ImageDevice(bytearray(sample.image))
    start, length = min(sample.places[kind], key=lambda place: place[1])
    if kind == "run block":
        device.image[start + length - 40] ^= 1  # before the cache has it
    async with Store.open(device, options=MANUAL) as store:
        if kind == "delta":
            before = {*(await places_of(store))[0][kind]}
            batch = store.batch()
            batch.put(SCRUB_KEY, b"x" * 500)
            await store.sync(store.apply(batch))
            ((start, length),) = {*(await places_of(store))[0][kind]} - before
        if kind != "run block":
            device.image[start + length - 40] ^= 1
        found = await scrubbed(store, rate=1 << 40, seconds=2.0)
    assert found["state"] == "done" and int(str(found["tree_bytes"])) > 3 * 4096
    parts = found["tree_found"]
    assert isinstance(parts, list) and found["tree_damaged"] == len(parts) == 1
    assert parts[0]["what"] == ("delta log" if kind == "delta" else kind)
    extent, offset = divmod(start, EXTENT_BYTES)
    assert (parts[0]["extent"], parts[0]["offset"]) == (extent, offset)
    assert ("inode numbers" in parts[0]["files"]) == kind.startswith("run")
    whole = await scrub_of(sample.image)
    share = int(str(found["verified_bytes"])) / int(str(whole["verified_bytes"]))
    assert share < 1 if kind == "run block" else share == 1


async def scrub_of(image: bytes) -> dict[str, object]:
    """A scrub of an undamaged store finds nothing."""
    async with Store.open(ImageDevice(bytearray(image)), options=MANUAL) as store:
        found = await scrubbed(store, rate=1 << 40, seconds=2.0)
        assert found["tree_damaged"] == found["damaged_bytes"] == 0
        return found


async def test_what_is_merged_or_written_meanwhile_is_no_damage() -> None:
    sample = await make_sample()
    async with Store.open(ImageDevice(bytearray(sample.image)), options=MANUAL) as store:
        looks = 0

        async def paced(_length: int) -> bool:
            nonlocal looks
            looks += 1
            batch = store.batch()
            batch.put(SCRUB_KEY, b"%d" % looks)
            await store.sync(store.apply(batch))
            await store.checkpoint()
            await store.reclaim()
            return True

        assert [each async for each in verify_tree(store, paced)] == []
        assert looks > 3
