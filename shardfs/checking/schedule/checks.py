"""Explore, shrink, tell: a whole check in one call, for tests.

Role: `check` explores a program and, if there is a finding, raises ScheduleFailure, whose message
holds the finding, the steps of the smallest failing run, and the word that replays it.

Not here: the parts it puts together (explorer.py, shrinking.py).
"""

from __future__ import annotations

from typing import TypeVar

from shardfs.checking.schedule.explorer import (
    STEPS_MAX,
    Exploration,
    Program,
    Run,
    explore,
    replay,
)
from shardfs.checking.schedule.shrinking import shrink
from shardfs.checking.schedule.strategies import Strategy

_STORY_LINES_MAX = 60

T = TypeVar("T")


class ScheduleFailure(AssertionError):
    """A schedule under which the program fails.

    Args:
        run: the smallest failing run, with its story.
        runs: how many it took to find the first one.
    """

    def __init__(self, run: Run[object], runs: int) -> None:
        super().__init__(describe(run, runs))
        self.run = run
        self.runs = runs


def describe(run: Run[T], runs: int) -> str:
    """A failing run in words: the finding, the story, the word that replays it."""
    story = run.story
    if len(story) > _STORY_LINES_MAX:
        left_out = len(story) - _STORY_LINES_MAX
        story = (f"  … {left_out} steps before …", *story[-_STORY_LINES_MAX:])
    return "\n".join(
        (
            f"{run.finding}",
            f"found in run {runs}; {run.trace.deviations} choices off the plain schedule:",
            *story,
            f"replay: {run.trace}",
        )
    )


def check(
    program: Program[T],
    strategy: Strategy,
    *,
    runs_max: int = 1000,
    steps_max: int = STEPS_MAX,
    attempts_max: int = 2000,
) -> Exploration[T]:
    """Explore; what is returned has no failure.

    Args:
        program, strategy, runs_max, steps_max: see explore.
        attempts_max: runs to spend on shrinking a failure.

    Raises:
        ScheduleFailure: there is a finding.
        NondeterminismError: see run_once.
    """
    exploration = explore(program, strategy, runs_max=runs_max, steps_max=steps_max)
    failure = exploration.failure
    if failure is None:
        return exploration
    smallest = shrink(program, failure, attempts_max=attempts_max, steps_max=steps_max)
    told = replay(program, smallest.trace, steps_max=steps_max, narrated=True)
    cause = told.finding.exception if told.finding is not None else None
    raise ScheduleFailure(told, exploration.runs) from cause
