"""The device in memory of scripts/bench_amplification is one that the engine can use.

Role: what it measures is seen by running it; here, that it still has all that the engine calls.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from shardfs.engine.device import Device
from shardfs.engine.mkfs import format_device, plan
from shardfs.limits import MIB
from tests.engine.stores import opened
from tests.tidy.sources import REPOSITORY


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    yield importlib.import_module("bench_amplification")
    del sys.modules["bench_amplification"]


async def test_a_store_lives_on_it(bench: ModuleType) -> None:
    device = bench.MemoryDevice(64 * MIB)
    wanted = {name for name in dir(Device) if not name.startswith("_")}
    assert [name for name in sorted(wanted) if not hasattr(device, name)] == []
    await format_device(device, plan(device.size_bytes, device.sector_bytes))
    async with opened(device) as store:
        await store.put(b"key", b"value" * 10_000)
        await store.sync()
    before = device.counts.write_bytes
    async with opened(device) as store:
        assert await store.get(b"key") == b"value" * 10_000
    assert device.counts.write_bytes > before
