"""A key was called durable while the delta that holds it was still on its way.

A checkpoint sets the memtable aside in the same breath as it cuts the last delta of it. Whether a
key is durable was asked of the memtable alone, and there the key was no more; so `shardfs shards
show` said of it, until the flush was done, that it would survive a power cut.
"""

from __future__ import annotations

import pytest

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.commit import Committer
from shardfs.engine.dependency import PERSISTENT, Dependency
from tests.engine.stores import formatted, opened

KEY = b"key"


async def told_before_it_was_true(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often, while a checkpoint waits for a flush, a key is called durable that a power cut
    at that moment may take away."""
    early = 0
    is_first = True
    real_flush = device.flush
    async with opened(device) as store:
        await store.put(KEY, b"value")

        async def flush() -> None:
            nonlocal early, is_first
            if is_first and store._tree.frozen is not None:
                is_first = False
                assert store._tree.frozen.get(KEY) is not None
                early += store.is_durable(KEY)
            await real_flush()

        with monkeypatch.context() as patch:
            patch.setattr(device, "flush", flush)
            await store.checkpoint()
        assert not is_first, "no memtable was set aside before a flush"
        assert store.is_durable(KEY)
    return early


async def test_what_is_set_aside_and_not_flushed_is_not_durable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await told_before_it_was_true(await formatted(), monkeypatch) == 0


async def test_the_mistake_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def applied_to(self: Committer, key: bytes) -> Dependency:
        if key in self._pending:
            return self._next
        return PERSISTENT if self._tree.memtable.get(key) is None else self._last

    monkeypatch.setattr(Committer, "applied_to", applied_to)
    assert await told_before_it_was_true(await formatted(), monkeypatch) == 1
