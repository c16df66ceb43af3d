"""Random lives of a store beside its specification; planted bugs are found and shrunk.

A seed that fails here is repeated by `run_case(decode_line(line))` with the line in the message.
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from unittest import mock

import pytest

from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.running import Case, run_case
from shardfs.checking.conformance.store_world import StoreWorld
from shardfs.checking.conformance.telling import tell
from shardfs.engine.extents import Extents
from shardfs.engine.pieces import Shard
from shardfs.engine.shards import ShardData
from shardfs.engine.store import Store
from tests.checking.cases import Plant, check_found_and_shrunk

CASES = 400
CASES_TO_FIND_MAX = 1500


def test_random_lives() -> None:
    coverage = Coverage()
    for seed in range(CASES):
        outcome = run_case(Case("store", seed))
        assert outcome.run.finding is None, f"{outcome.line}\n{tell(outcome)}"
        coverage.add(outcome.coverage)
    for kind in ("clean", "lose", "keep", "kill", "scatter", "tear"):
        assert coverage.counts[f"crash {kind}"] > 0
    assert coverage.counts["operation put"] > CASES
    assert any(name.startswith("fault ") for name in coverage.counts)
    assert len(coverage.crash_states) > CASES / 3


def test_all_of_the_alphabet_is_used() -> None:
    world = StoreWorld()
    used = {each.name for seed in range(2000) for each in world.generate(random.Random(seed))}
    assert used == set(world.alphabet)


def data_may_follow_its_delta() -> AbstractContextManager[object]:
    """A delta is issued without waiting for the data that it refers to."""
    return mock.patch.object(ShardData, "take_appended", lambda self, locator: None)


def the_dead_are_freed_at_once() -> AbstractContextManager[object]:
    """An extent may be reused before the delta that drops its last chunk is durable."""
    debit = Extents.debit

    def hasty(self: Extents, extent: int, epoch: int, length: int, delta: int = 0) -> None:
        debit(self, extent, epoch, length)

    return mock.patch.object(Extents, "debit", hasty)


def a_part_ends_a_byte_early() -> AbstractContextManager[object]:
    """Partial reads lose their last byte when they end where the value ends."""
    read_shard = Store.read_shard

    async def short(self: Store, shard: Shard, start: int, length: int) -> bytes:
        found = await read_shard(self, shard, start, length)
        return found[:-1] if start and found else found

    return mock.patch.object(Store, "read_shard", short)


@pytest.mark.parametrize(
    ("plant", "operations_max"),
    [
        (data_may_follow_its_delta, 5),
        (the_dead_are_freed_at_once, 12),
        (a_part_ends_a_byte_early, 3),
    ],
)
def test_a_planted_bug_is_found_and_shrunk(plant: Plant, operations_max: int) -> None:
    check_found_and_shrunk(
        "store",
        plant,
        cases_max=CASES_TO_FIND_MAX,
        attempts_max=1500,
        operations_max=operations_max,
    )
