"""Python's garbage collector in a process that serves."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from shardfs import clock, limits
from shardfs.cli import heap


@pytest.fixture
def searches() -> Iterator[list[tuple[int, int]]]:
    """(generation, objects looked at) of each search of the collector while the test runs."""
    seen: list[tuple[int, int]] = []

    def note(phase: str, told: dict[str, int]) -> None:
        if phase == "start":
            generation = told["generation"]
            looked_at = sum(len(gc.get_objects(each)) for each in range(generation + 1))
            seen.append((generation, looked_at))

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_a_growing_heap_is_searched_a_little_at_a_time(searches: list[tuple[int, int]]) -> None:
    """As the caches of a mount grow: many objects that stay (I1)."""
    with heap.short_pauses():
        searches.clear()
        kept = [(number, [number]) for number in range(100_000)]
        inside = list(searches)
    assert len(kept) == 100_000
    assert max(generation for generation, _ in inside) == 1
    assert 0 < max(looked_at for _, looked_at in inside) <= 1.5 * limits.YOUNG_OBJECTS_MAX


def test_circles_of_young_objects_still_go() -> None:
    with heap.short_pauses():
        before = len(gc.get_objects())
        for _ in range(100_000):
            circle: list[object] = []
            circle.append(circle)
        assert len(gc.get_objects()) - before <= 3 * limits.YOUNG_OBJECTS_MAX


def test_everything_is_as_before_at_the_end() -> None:
    before = gc.get_threshold()
    with heap.short_pauses():
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("is_busy", [False, True])
def test_all_is_searched_when_idle_or_after_a_day(
    is_busy: bool, searches: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated days (I2)."""
    used_s = 0.0

    def processor_s() -> float:
        nonlocal used_s
        used_s += 30.0 if is_busy else 0.1
        return used_s

    monkeypatch.setattr(clock, "processor_s", processor_s)
    wanted_s = heap.FULL_SEARCH_BUSY_S if is_busy else heap.FULL_SEARCH_S
    full: list[int] = []

    async def live() -> None:
        with trio.move_on_after(2.5 * wanted_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(heap.keep_pauses_short)
                await trio.sleep(1)
                searches.clear()
                while True:
                    await trio.sleep(heap._LOOK_INTERVAL_S)
                    full.extend(generation for generation, _ in searches if generation == 2)
                    searches.clear()

    trio.run(live, clock=MockClock(autojump_threshold=0))
    assert len(full) == 2
