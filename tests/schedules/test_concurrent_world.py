"""The world of concurrent callers: it holds, it repeats itself, and it would notice."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from shardfs.checking.conformance.case import Coverage, Operations
from shardfs.checking.conformance.concurrent_world import ALPHABET, SETTING_UP, ConcurrentWorld
from shardfs.checking.schedule import Random, Run, replay, run_once
from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.commit import Committer
from shardfs.engine.extents import Extents
from shardfs.engine.lsm.merge import Page, load_page
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store

WORLD = ConcurrentWorld()
pytestmark = pytest.mark.expected_warnings("failed: ", "is now read-only", "without a clean record")


def _run(seed: int, operations: Operations | None = None) -> Run[None]:
    if operations is None:
        operations = WORLD.generate(random.Random(seed))
    strategy = Random(seed)
    strategy.begin()
    return run_once(WORLD.program(operations, Coverage()), strategy)


@pytest.mark.parametrize("start", [0, pytest.param(1000, marks=pytest.mark.slow)])
def test_sampled(start: int, expect_warning: Callable[[str], None]) -> None:
    expect_warning("can not be (moved|scanned)")  # a read failed on purpose
    for seed in range(start, start + (5000 if start else 60)):
        run = _run(seed)
        assert run.finding is None, f"seed {seed}: {run.finding}"


def test_a_run_replays() -> None:
    for seed in range(8):
        operations = WORLD.generate(random.Random(seed))
        run = _run(seed)
        again = replay(WORLD.program(operations, Coverage()), str(run.trace))
        assert again.steps == run.steps


def test_parts_of_sequences_run_too() -> None:
    """What shrinking makes of a sequence: operations left out, numbers lowered."""
    rng = random.Random(7)
    for seed in range(12):
        operations = WORLD.generate(rng)
        fewer = [
            each._replace(arguments=tuple(number // 2 for number in each.arguments))
            for each in operations
            if rng.random() < 0.6
        ]
        run = _run(seed, tuple(fewer))
        assert run.finding is None, f"{fewer}: {run.finding}"


def test_every_operation_is_generated() -> None:
    names = {each.name for seed in range(200) for each in WORLD.generate(random.Random(seed))}
    assert names == {*ALPHABET, *SETTING_UP}


# --- what it would notice -----------------------------------------------------------------------


def _write_and_flush(patch: pytest.MonkeyPatch) -> None:
    """Who reads asks the device from the moment that a tail is handed over to be written."""
    cut = Extents.cut

    def early(self: Extents, extent: Any) -> None:
        tail = extent.tail
        cut(self, extent)
        unwritten: dict[Any, Any] = self._unwritten
        for offset in tail.frames if tail is not None else ():
            unwritten[extent.index, offset] = None

    patch.setattr(Extents, "cut", early)


def _a_record_waits_for_a_commit(patch: pytest.MonkeyPatch) -> None:
    """Whoever writes a superblock record waits for the commit that waits for the same lock."""
    write_record, commit_once = Committer.write_record, Committer._commit_once
    owners: dict[Committer, Any] = {}

    async def patient(self: Committer, *, clean: bool = False) -> Any:
        async with self._record_lock:
            while self._committing and owners[self] is not trio.lowlevel.current_task():
                await self._end_of_commit()
        return await write_record(self, clean=clean)

    async def owned(self: Committer) -> None:
        owners[self] = trio.lowlevel.current_task()
        await commit_once(self)

    patch.setattr(Committer, "write_record", patient)
    patch.setattr(Committer, "_commit_once", owned)


def _a_list_ends_at_what_was_removed(patch: pytest.MonkeyPatch) -> None:
    """A list takes the keys first and looks each of them up then."""
    scan = Store.scan

    async def keys_first(self: Store, start: bytes, end: bytes) -> Any:
        for key, value in [pair async for pair in scan(self, start, end)]:
            if await self._tree.get(key) is None:
                return
            yield key, value

    patch.setattr(Store, "scan", keys_first)


def _a_page_of_two_moments(patch: pytest.MonkeyPatch) -> None:
    """A list puts the runs of one moment and the memory of another together."""

    async def page(self: Tree, start: bytes, end: bytes, count_max: int = 256) -> Page:
        stored = await load_page(self.runs, start, end, count_max)
        return self._with_memory(stored, start, end, count_max)

    patch.setattr(Tree, "page", page)


def _merges_and_checkpoints_together(patch: pytest.MonkeyPatch) -> None:
    """Compaction and what runs beside it do not exclude each other."""

    class NoLock:
        async def __aenter__(self) -> None:
            await trio.lowlevel.checkpoint()

        async def __aexit__(self, *_: object) -> None:
            pass

        def locked(self) -> bool:
            return False

        def statistics(self) -> trio.LockStatistics:
            return trio.Lock().statistics()

    init = Checkpointer.__init__

    def without(self: Checkpointer, *arguments: Any) -> None:
        init(self, *arguments)
        self._lock = self._merging = NoLock()  # type: ignore[assignment]  # that is the mistake

    patch.setattr(Checkpointer, "__init__", without)


def _bases_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Bulk creations and removals are applied to shards that have changed meanwhile."""

    def always(self: Tree, key: bytes, base: Shard | None, generation: int) -> bool:
        return True

    patch.setattr(Tree, "is_current", always)


@pytest.mark.parametrize(
    ("plant", "match", "runs_max"),
    [
        (_write_and_flush, "CorruptionError", 100),
        (_a_record_waits_for_a_commit, "nothing can run|not finished", 200),
        (_a_list_ends_at_what_was_removed, "not linearizable|keys that stay", 200),
        (_merges_and_checkpoints_together, "", 100),
        (_bases_are_not_compared, "", 100),
        pytest.param(_a_page_of_two_moments, "", 3000, marks=pytest.mark.slow),
    ],
)
def test_planted(
    plant: Callable[[pytest.MonkeyPatch], None],
    match: str,
    runs_max: int,
    monkeypatch: pytest.MonkeyPatch,
    expect_warning: Callable[[str], None],
) -> None:
    expect_warning("a background task of the store failed|can not be (moved|scanned)")
    plant(monkeypatch)
    for seed in range(50_000, 50_000 + runs_max):
        finding = _run(seed).finding
        if finding is not None:
            assert any(word in finding.message for word in match.split("|"))
            return
    raise AssertionError(f"not noticed in {runs_max} runs")
