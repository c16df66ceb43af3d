"""Runs that were merged beside a merge of everything came out on a higher level than its result.

Found by filling and emptying a disk of 1 GiB with small files twenty times: fsck said so (E2). A
merge of everything settles on the level that its size needs, which is low when all was garbage;
it looked at the runs behind it, and not at what these were just being merged to.
"""

from __future__ import annotations

import random

import pytest

from shardfs import limits
from shardfs.engine.store import Store
from tests.engine.stores import content, formatted, opened

KIB = limits.KIB
KEYS = 400


def levels_of(store: Store) -> list[int]:
    return [run.level for run in store._tree.runs]


@pytest.mark.parametrize("seed", (1, 2, 3, 8, 12, 13))
async def test_levels_fall_along_the_sequence(seed: int) -> None:
    rng = random.Random(seed)
    device = await formatted(24, extent_bytes=64 * KIB)
    expected: dict[bytes, bytes] = {}

    async def change(store: Store, count: int) -> None:
        batch = store.batch()
        for number in rng.sample(range(KEYS), count):
            key = b"key %08d" % number
            if rng.random() < 0.6:
                batch.delete(key)
                expected.pop(key, None)
            else:
                expected[key] = b"%d" % rng.randrange(10**9) * 40
                batch.put(key, expected[key])
        store.apply(batch)
        await store.checkpoint()
        assert levels_of(store) == sorted(levels_of(store), reverse=True)

    async with opened(device) as store:
        for _ in range(60):
            for _ in range(rng.randrange(6)):
                await change(store, rng.choice((1, 20, 200)))
            for _ in range(rng.randrange(1, 6)):
                await store.compact()
                assert levels_of(store) == sorted(levels_of(store), reverse=True)
        assert await content(store) == expected
