"""The world of stores took a lost durable delta for rot that spreads.

The delta had said where a chunk was moved to; its old extent was free already. When the delta rots
the store opens read-only, says why, and shows what came before: reading the chunk is an error. That
is what faults.py asks for. Anything else that cannot be read although it did not rot is a finding.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardfs import limits
from shardfs.checking.conformance.running import decode_line, run_case
from shardfs.errors import CorruptionError
from tests.engine.stores import formatted, opened

KIB = limits.KIB
LINE = (
    "1:store:163200000000002318:6c3024f0e765a4ef:zeNpLL8ov1zGwLi4oSk1M0TEz17G0LsnIzNMx0DG2Lq7MS7YuyU"
    "yptC7KL9FNzKssz0gtStUxBqpPLi0BKgFDAOdPFTw:1.p."
)
"""Small values are moved out of the way, the log of that rots, the power is cut."""


def test_the_case_that_was_found() -> None:
    outcome = run_case(replace(decode_line(LINE), digest=""))
    assert outcome.run.finding is None, f"{outcome.line}: {outcome.run.finding}"


@pytest.mark.expected_warnings("the delta log ends", "read-only")
async def test_what_was_moved_is_an_error_and_the_rest_is_there() -> None:
    device = await formatted(16, extent_bytes=64 * KIB)
    async with opened(device) as store:
        for number in range(30):
            await store.put(b"%02d" % number, bytes([number]) * 6000)
        await store.sync()
        await store.checkpoint()
        for number in range(30):
            if number % 3:
                await store.delete(b"%02d" % number)
        await store.sync()
        before = {extent.index: extent.write_pointer for extent in store._extents.all}
        log = next(
            each for each in store._extents.all if each.index == store._committer.root.log_extent
        )
        assert await store.reclaim() >= 1
        await store.sync()
        await store.sync(await store._committer.write_record())
        rotten = log.index * 64 * KIB + before[log.index] + 100
        crashed = device.power_cut()
    crashed.rot(rotten)
    errors, right = [], 0
    async with opened(crashed) as store:
        assert store.health.reason.startswith("the delta log ends")
        for number in range(0, 30, 3):
            key = b"%02d" % number
            try:
                assert await store.get(key) == bytes([number]) * 6000
                right += 1
            except CorruptionError as error:
                errors.append(str(error))
    assert errors and all("has been reset since" in each for each in errors)
    assert right
