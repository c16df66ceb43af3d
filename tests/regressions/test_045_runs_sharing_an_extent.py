"""A device was called full while extents of the tree held little but garbage.

Found by the world of stores, as soon as its trees had several small runs. An extent in which more
than one run lay was emptied of the oldest run only, so it was not given back. And what is moved
fills an extent of its own: emptying two may give one. Reclamation took either for a sign that
moving the tree gives nothing, and stopped.
"""

from __future__ import annotations

import itertools
import random

import pytest

from shardfs import limits
from shardfs.checking.conformance.small_limits import OF_TREES, in_force
from shardfs.engine.layout import Stream
from shardfs.engine.store import Store
from tests.engine.stores import content, formatted, opened

EXTENT = 64 * limits.KIB
KEYS = 12
VALUE_BYTES_MAX = 230
FILLED_BYTES = 4000
FREE_BYTES_MAX = 5 * FILLED_BYTES


def extents_of_runs(store: Store) -> int:
    return store._extents.space.held_extents(Stream.RUNS)


async def test_extents_that_several_runs_share_are_emptied() -> None:
    device = await formatted(24, extent_bytes=EXTENT)
    async with opened(device) as store:
        # Manifests fill the extent beside the runs; when another is begun, the first is sealed.
        for number in itertools.count():
            await store.put(b"key %d" % number, bytes(200))
            await store.checkpoint()
            if extents_of_runs(store) > 1:
                break
        before = await content(store)
        (shared,) = store._extents.sealed(Stream.RUNS)
        assert 0 < shared.live_bytes < EXTENT // 2
        epoch = shared.epoch
        while await store.reclaim():
            pass
        assert shared.epoch > epoch, "it is still in use"
        assert await content(store) == before


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_free_can_be_written_beside_a_tree_of_little_but_garbage(seed: int) -> None:
    rng = random.Random(seed)
    device = await formatted(24 * EXTENT / limits.MIB, extent_bytes=EXTENT)
    with in_force(OF_TREES, wanted=True):
        async with opened(device) as store:
            for _ in range(40):
                for number in rng.sample(range(KEYS), rng.randrange(1, 4)):
                    await store.put(b"key %d" % number, bytes(rng.randrange(1, VALUE_BYTES_MAX)))
                await store.checkpoint()
                for _ in range(rng.randrange(3)):
                    await store.compact()
            for number in itertools.count():
                if store.space().free_bytes < FREE_BYTES_MAX:
                    break
                await store.put(b"filler %d" % number, bytes(FILLED_BYTES))
