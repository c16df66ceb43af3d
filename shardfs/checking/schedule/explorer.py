"""Runs a trio program under schedules of a strategy's choosing, and replays what was found.

Role: the door to the explorer. A program is an async function of one argument, its Control;
`run_once` runs it once, `each_run` again and again, `explore` until a finding, `replay` exactly as
a trace says, `check` does all of that and raises with everything a reader needs.

Invariants:
    I1. Nothing but the strategy's choices decides what a run does, as long as the program uses no
        threads, no clock but trio's, no randomness but Control.draw, and no order of a set.
    I2. Time never passes: trio's clock jumps to the next deadline when nothing can run.

Not here: making a failing trace smaller (shrinking.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio
import trio.testing

from shardfs.checking.schedule.driver import Driver
from shardfs.checking.schedule.findings import Finding, from_exception, leaves
from shardfs.checking.schedule.strategies import NondeterminismError, Replay, Strategy
from shardfs.checking.schedule.trace import Trace, decode, trimmed

STEPS_MAX = 100_000
"""Steps after which a run is a livelock, if the caller gives no other number."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Control:
    """What a program under exploration gets: choices beside those of scheduling."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def draw(self, bound: int) -> int:
        """A number from 0 to bound - 1, chosen by the strategy and kept in the trace."""
        return self._driver.draw(bound)

    def cancellable(self, name: str = "cancellation") -> AbstractContextManager[trio.CancelScope]:
        """A cancel scope that the strategy may cancel at any step while it is open, or never."""
        return self._driver.cancellable(name)

    @property
    def steps(self) -> int:
        """Steps that tasks have taken so far: a clock for histories."""
        return self._driver.steps


Program = Callable[[Control], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Run(Generic[T_co]):
    """What one run did.

    Args:
        trace: replays it.
        steps: that its tasks took.
        choices: that were made, plainest ones included.
        finding: None if all went well.
        value: what the program returned; None if it did not.
        story: a line for each step, if asked for.
    """

    trace: Trace
    steps: int
    choices: int
    finding: Finding | None
    value: T_co | None
    story: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exploration(Generic[T_co]):
    """What many runs turned up.

    Args:
        runs, steps: made in total.
        complete: the strategy had no more runs to make.
        failure: the first run with a finding; none came after it.
    """

    runs: int
    steps: int
    complete: bool
    failure: Run[T_co] | None


def run_once(
    program: Program[T],
    strategy: Strategy,
    *,
    steps_max: int = STEPS_MAX,
    narrated: bool = False,
) -> Run[T]:
    """Run the program once; the strategy's `begin` has been called.

    Args:
        program: called with its Control.
        strategy: makes the choices.
        steps_max: a run that takes more is a livelock. Its second half is scheduled fairly.
        narrated: keep the story.

    Raises:
        NondeterminismError: the strategy noticed that choices do not decide the run.
    """
    driver = Driver(strategy, steps_max, steps_max // 2, narrated=narrated)
    value: T | None = None
    caught: BaseException | None = None
    with driver.installed():
        clock = trio.testing.MockClock(autojump_threshold=0)
        try:
            value = trio.run(program, Control(driver), clock=clock)
        except BaseException as error:  # PowerCut is one, and so are groups of them
            caught = error
    if driver.error is not None:
        raise driver.error
    finding = driver.finding
    if caught is not None:
        if any(isinstance(each, KeyboardInterrupt | SystemExit) for each in leaves(caught)):
            raise caught
        finding = finding or from_exception(caught, driver.steps)
    trace = Trace(trimmed(driver.choices), driver.digest)
    return Run(trace, driver.steps, len(driver.choices), finding, value, tuple(driver.story))


def each_run(
    program: Program[T], strategy: Strategy, *, steps_max: int = STEPS_MAX
) -> Iterator[Run[T]]:
    """One run after the other, until the strategy has no more or the caller stops asking."""
    while strategy.begin():
        yield run_once(program, strategy, steps_max=steps_max)


def explore(
    program: Program[T], strategy: Strategy, *, runs_max: int, steps_max: int = STEPS_MAX
) -> Exploration[T]:
    """Run until a finding, the strategy's end, or `runs_max` runs.

    Raises:
        NondeterminismError: see run_once.
    """
    runs = steps = 0
    while runs < runs_max:
        if not strategy.begin():
            return Exploration(runs, steps, True, None)
        run = run_once(program, strategy, steps_max=steps_max)
        runs += 1
        steps += run.steps
        if run.finding is not None:
            return Exploration(runs, steps, False, run)
    return Exploration(runs, steps, False, None)


def replay(
    program: Program[T],
    trace: Trace | str,
    *,
    steps_max: int = STEPS_MAX,
    narrated: bool = False,
) -> Run[T]:
    """The run of a trace again.

    Args:
        trace: or its text.
        steps_max: as in the run that made it.
        narrated: keep the story.

    Raises:
        NondeterminismError: it was another run; the trace has a digest that tells.
        UsageError: the text is no trace.
    """
    wanted = decode(trace) if isinstance(trace, str) else trace
    run = run_once(program, Replay(wanted.choices), steps_max=steps_max, narrated=narrated)
    if wanted.digest and run.trace.digest != wanted.digest:
        raise NondeterminismError(
            f"the run has the digest {run.trace.digest}, the trace {wanted.digest}: the program, "
            "or something it depends on beside its choices, has changed"
        )
    return run
