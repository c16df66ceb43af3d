"""From the bytes of files to the bytes of the device and back: each is the inverse of the other."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.places import PlaceKind, Places
from shardfs.engine.store import Store
from shardfs.errors import UsageError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.inspection import Inspection
from tests.fuse.harness import Caller

MIB = limits.MIB
SHARD = limits.SHARD_BYTES


async def work_at_random(file_system: FileSystem, store: Store, chance: random.Random) -> None:
    """Files of all sizes, overwritten, cut off, removed; runs, deltas and reclamation between."""
    caller = Caller(file_system)
    write = file_system.writeback.write
    names: list[str] = []
    for step in range(chance.randrange(30, 60)):
        kind = chance.randrange(10)
        if kind < 5 or not names:
            name = f"file-{step}"
            size = chance.choice((1, 100, 4096, 33_000, 300_000))
            await caller.create(name, data=chance.randbytes(chance.randrange(size) + 1))
            names.append(name)
        elif kind < 7:
            ino = await caller.find(chance.choice(names))
            start = chance.choice((0, 50, 5000, SHARD - 7, 2 * SHARD))
            await write(ino, start, chance.randbytes(chance.randrange(1, 20_000)))
        elif kind < 8:
            name = names.pop(chance.randrange(len(names)))
            await caller.unlink(name)
        else:
            await file_system.sync()
            chosen = chance.randrange(3)
            if chosen == 0:
                await store.checkpoint()
            elif chosen == 1:
                await store.compact()
            else:
                await store.reclaim()
    await file_system.sync()


@asynccontextmanager
async def random_image(seed: int) -> AsyncIterator[SimulatedDevice]:
    """A device that somebody has worked on, closed in order."""
    chance = random.Random(seed)
    size = 6 * MIB
    device = SimulatedDevice(size)
    await format_device(device, plan(size, 512, extent_bytes=128 * limits.KIB))
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        file_system = await FileSystem.open(store)
        await work_at_random(file_system, store, chance)
        await file_system.end()
    yield device


async def ask(inspection: Inspection, request: str, **arguments: object) -> dict[str, Any]:
    return await inspection.answer({"request": request, **arguments})


async def ranges_of(inspection: Inspection, ino: int) -> list[dict[str, Any]]:
    await ask(inspection, "map-begin", ino=ino)
    found: list[dict[str, Any]] = []
    while True:
        page = await ask(inspection, "map-more")
        found += page["ranges"]
        if page["end"]:
            return found


async def inos(inspection: Inspection) -> set[int]:
    await ask(inspection, "shards-begin", path="")
    found = set()
    while True:
        page = await ask(inspection, "shards-more")
        found |= {shard["ino"] for shard in page["shards"]}
        if page["end"]:
            return found


@pytest.mark.parametrize("seed", range(6))
async def test_maps_and_places_are_inverse_over_all_bytes(seed: int) -> None:
    async with (
        random_image(seed) as device,
        Store.open(device, options=StoreOptions(read_only=True, background=False)) as store,
    ):
        inspection = Inspection(store, "simulated")
        mapped = [
            (each["address"], each["address"] + each["length"], ino, each["start"])
            for ino in await inos(inspection)
            for each in await ranges_of(inspection, ino)
        ]
        mapped.sort()
        assert mapped
        placed, kinds, at = [], set(), 0
        while at < device.size_bytes:
            place = await ask(inspection, "whereis", offset=at)
            assert place["start"] == at < place["end"], "no byte is left out, none is in two places"
            kinds.add(place["kind"])
            if place["kind"] == "data":
                placed.append((at, place["end"], place["ino"], place["file_start"]))
                assert place["paths"]
            else:
                assert place["file_start"] is None
            at = place["end"]
        assert at == device.size_bytes
        assert placed == mapped
        assert kinds >= {"data", "head", "log", "superblock", "padding", "free", "unwritten"}
        for address in random.Random(seed).sample(range(device.size_bytes), 40):
            place = await ask(inspection, "whereis", offset=address)
            assert place["start"] <= address < place["end"]
            wanted = [each for each in mapped if each[0] <= address < each[1]]
            found = (place["start"], place["end"], place["ino"], place["file_start"])
            assert wanted == ([found] if place["kind"] == "data" else [])
        await inspection.aclose()


async def test_the_bytes_at_the_address_are_those_of_the_file() -> None:
    async with (
        random_image(7) as device,
        Store.open(device, options=StoreOptions(read_only=True, background=False)) as store,
    ):
        inspection = Inspection(store, "simulated")
        file_system = await FileSystem.open(store)
        for ino in await inos(inspection):
            for each in await ranges_of(inspection, ino):
                data = await file_system.writeback.read(ino, each["start"], each["length"])
                assert bytes(await device.read(each["address"], each["length"])) == bytes(data)
        await inspection.aclose()


async def test_what_a_damaged_head_belongs_to_is_found_all_the_same() -> None:
    async with random_image(8) as device:
        options = StoreOptions(read_only=True, background=False)
        async with Store.open(device, options=options) as store:
            inspection = Inspection(store, "simulated")
            ino = min(await inos(inspection))
            before = await ranges_of(inspection, ino)
            await inspection.aclose()
        block = before[0]["frame"] - before[0]["frame"] % limits.BLOCK_BYTES
        data = bytearray(await device.read(block, limits.BLOCK_BYTES))
        at = before[0]["frame"] - block
        data[at : at + 48] = bytes(48)
        await device.write(block, [bytes(data)])
        async with Store.open(device, options=options) as store:
            places = Places(store)
            for each in before:
                place = await places.at(each["address"])
                assert (place.kind, place.start) == (PlaceKind.DATA, each["address"])
            await places.aclose()


async def test_bytes_behind_the_device() -> None:
    async with (
        random_image(9) as device,
        Store.open(device, options=StoreOptions(read_only=True, background=False)) as store,
    ):
        inspection = Inspection(store, "simulated")
        with pytest.raises(UsageError, match="there is no byte"):
            await ask(inspection, "whereis", offset=device.size_bytes)
        await inspection.aclose()
