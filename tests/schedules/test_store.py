"""Concurrent callers of a whole store under explored schedules (programs in stores.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio

from shardfs.checking.schedule import (
    Exhaustive,
    Priorities,
    Program,
    Random,
    ScheduleFailure,
    check,
)
from shardfs.engine.commit import Committer
from shardfs.engine.dependency import PERSISTENT, Dependency
from shardfs.engine.lsm.entry import encode_shard
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.store import Store
from tests.schedules import stores

PROGRAMS: dict[str, Program[object]] = {
    "clients and upkeep": stores.clients_and_upkeep,
    "clients and background": stores.clients_and_background,
    "two puts": stores.two_puts_a_sync_and_a_checkpoint,
    "maintenance together": stores.checkpoints_and_reclaims_together,
    "batches and lists": stores.batches_and_lists,
    "cancelled whole": stores.the_whole_store_is_cancelled,
    **{
        f"cancelled {call}": partial(stores.one_call_is_cancelled, call=call)
        for call in stores.CANCELLED
    },
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_sampled(name: str) -> None:
    check(PROGRAMS[name], Random(seed=1), runs_max=8)
    check(PROGRAMS[name], Priorities(depth=3, seed=1), runs_max=8)


def test_two_puts_a_sync_and_a_checkpoint_with_one_deviation() -> None:
    exploration = check(
        stores.two_puts_a_sync_and_a_checkpoint, Exhaustive(deviations_max=1), runs_max=5000
    )
    assert exploration.complete
    assert exploration.runs > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_sampled_at_length(name: str) -> None:
    check(PROGRAMS[name], Random(seed=1000), runs_max=300)
    check(PROGRAMS[name], Priorities(depth=4, seed=1000), runs_max=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two puts", "cancelled whole", "batches and lists"])
def test_two_deviations(name: str) -> None:
    check(PROGRAMS[name], Exhaustive(deviations_max=2), runs_max=5000)


# --- what these programs would catch ----------------------------------------------------------


def _catches(name: str, match: str, runs_max: int = 300) -> None:
    with pytest.raises(ScheduleFailure, match=match):
        check(PROGRAMS[name], Priorities(depth=3, seed=1), runs_max=runs_max, attempts_max=50)


def test_planted_a_put_that_reads_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old value is looked up, then somebody else runs, then the new one replaces it."""

    async def put(store: Store, key: bytes, value: Any) -> Dependency:
        old = await store._load(key)
        await trio.lowlevel.checkpoint()
        pieces = store.append_pieces(key, 0, (value,))
        return store._replace(store.batch(), key, old, encode_shard(pieces), pieces)

    monkeypatch.setattr(Store, "put", put)
    _catches("two puts", "negative live bytes")


def test_planted_a_sync_that_forgets_what_is_being_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is pending, so nothing is waited for: but a commit is under way."""
    applied = Committer.applied

    def forgetful(committer: Committer) -> Dependency:
        return applied(committer) if committer._pending else PERSISTENT

    monkeypatch.setattr(Committer, "applied", forgetful)
    _catches("clients and upkeep", "lost by a cut behind a sync")


def test_planted_a_write_that_a_cancellation_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Device writes run in the nursery of whoever opened the store, without a shield."""
    write_group = Scheduler._write_group

    async def unshielded(scheduler: Scheduler, *arguments: Any) -> None:
        await trio.lowlevel.checkpoint()
        await write_group(scheduler, *arguments)

    monkeypatch.setattr(Scheduler, "_write_group", unshielded)
    _catches("cancelled whole", "assertion|exception|deadlock")
