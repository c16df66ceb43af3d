"""A power cut during mkfs over an older store brought that store back with its edges erased.

While the old store opens it must be whole; after that there is none, or the new one.
"""

from __future__ import annotations

import pytest

from shardfs import limits
from shardfs.checking.simulated_device import PowerCut
from shardfs.engine.mkfs import format_device, plan
from shardfs.errors import CorruptionError, NotShardfsError
from tests.engine.stores import content, formatted, opened

VALUES = {b"%d" % number: bytes([number]) * 300_000 for number in range(30)}
STEPS_MAX = 60


@pytest.mark.parametrize("extent_bytes", [None, 256 * limits.KIB])
async def test_mkfs_cut_at_every_step(extent_bytes: int | None) -> None:
    old = await formatted(64)
    async with opened(old) as store:
        for key, value in VALUES.items():
            await store.put(key, value)
        old_uuid = store.identity.uuid
    identity = plan(old.size_bytes, 512, extent_bytes=extent_bytes)
    outcomes = set()
    for step in range(1, STEPS_MAX):
        device = old.power_cut(old.power_cut_point().everything())
        device.cut_at(device.step + step)
        try:
            await format_device(device, identity)
        except PowerCut:
            pass
        except BaseExceptionGroup as group:
            assert group.subgroup(PowerCut) is not None
        else:
            break
        for survivors in ((), device.power_cut_point().everything()):
            try:
                async with opened(device.power_cut(survivors)) as store:
                    if store.identity.uuid == old_uuid:
                        assert await content(store) == VALUES
                        outcomes.add("old")
                    else:
                        assert store.identity.uuid == identity.uuid
                        assert await content(store) == {}
                        outcomes.add("new")
            except (NotShardfsError, CorruptionError):
                outcomes.add("none")
    assert outcomes == {"old", "new", "none"}
