"""Runs of very many steps on a real store, and their replay (program in long_lives.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from shardfs.checking.schedule import Priorities, Random, Strategy, replay, run_once
from tests.schedules.long_lives import a_long_life

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "random": lambda: Random(seed=5),
    "priorities": lambda: Priorities(depth=40, seed=5, choices_expected=20_000),
}


@pytest.mark.parametrize(
    "steps", [20_000, pytest.param(1_000_001, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_long_life_replays(
    strategy: str, steps: int, record_property: Callable[[str, object], None]
) -> None:
    program = partial(a_long_life, steps=steps)
    chosen = STRATEGIES[strategy]()
    chosen.begin()
    # The bound leaves the first half to the strategy; twice that, so that all of it is.
    steps_max = 2 * steps + 20_000
    began = time.process_time()
    run = run_once(program, chosen, steps_max=steps_max)
    record_property("steps_per_cpu_second", round(run.steps / (time.process_time() - began)))
    assert run.finding is None, f"{run.finding}"
    assert run.steps >= steps
    assert run.value is not None and run.value * 4000 > steps
    again = replay(program, str(run.trace), steps_max=steps_max)
    assert (again.trace, again.steps, again.value) == (run.trace, run.steps, run.value)
