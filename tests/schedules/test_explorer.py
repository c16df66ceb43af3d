"""The explorer's canaries: interleavings counted, planted bugs found, replayed and shrunk."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import islice, pairwise
from pathlib import Path

import pytest
import trio
from trio._core import _run

from shardfs.checking.schedule import (
    Control,
    Exhaustive,
    FindingKind,
    NondeterminismError,
    Priorities,
    Random,
    Replay,
    ScheduleFailure,
    Strategy,
    check,
    decode,
    each_run,
    explore,
    replay,
    run_once,
    shrink,
)
from tests.schedules import programs

REPOSITORY = Path(__file__).parents[2]
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "random": lambda: Random(seed=1),
    "priorities": lambda: Priorities(depth=3, seed=1),
    "exhaustive": Exhaustive,
}


# --- counting ---------------------------------------------------------------------------------


def test_every_interleaving_once() -> None:
    outcomes = [run.value for run in each_run(programs.three_tasks_of_two_steps, Exhaustive())]
    assert len(outcomes) == len(set(outcomes)) == 90


def _preemptions(order: tuple[int, ...]) -> int:
    """Switches away from a task that has a step left."""
    return sum(
        one != other and one in order[at + 1 :] for at, (one, other) in enumerate(pairwise(order))
    )


@pytest.mark.parametrize("preemptions_max", [0, 1, 2, 3])
def test_preemption_bounds_cut_exactly(preemptions_max: int) -> None:
    everything = {run.value for run in each_run(programs.three_tasks_of_two_steps, Exhaustive())}
    expected = {order for order in everything if order and _preemptions(order) <= preemptions_max}
    outcomes = [
        run.value
        for run in each_run(programs.three_tasks_of_two_steps, Exhaustive(preemptions_max))
    ]
    assert len(outcomes) == len(expected)
    assert set(outcomes) == expected


@pytest.mark.parametrize("strategy", [Random(seed=1), Priorities(depth=6, seed=1)])
def test_sampling_reaches_every_interleaving(strategy: Strategy) -> None:
    outcomes = set()
    for number, run in enumerate(each_run(programs.three_tasks_of_two_steps, strategy)):
        outcomes.add(run.value)
        if len(outcomes) == 90:
            break
        assert number < 5000, f"only {len(outcomes)}"


@pytest.mark.parametrize(("tasks", "steps"), [(2, 2), (2, 4), (4, 1), (3, 2), (2, 6)])
def test_number_of_interleavings(tasks: int, steps: int) -> None:
    async def program(control: Control) -> tuple[int, ...]:
        seen: list[int] = []

        async def task(number: int) -> None:
            for _ in range(steps - 1):
                seen.append(number)
                await trio.lowlevel.checkpoint()
            seen.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(task, number)
        return tuple(seen)

    expected = math.factorial(tasks * steps) // math.factorial(steps) ** tasks
    exploration = explore(program, Exhaustive(), runs_max=expected + 1)
    assert exploration.complete
    assert exploration.runs == expected


def test_draws_are_exhausted_too() -> None:
    async def program(control: Control) -> tuple[int, int, int]:
        return control.draw(3), control.draw(1), control.draw(4)

    values = [run.value for run in each_run(program, Exhaustive())]
    assert values == [(one, 0, other) for one in range(3) for other in range(4)]


def test_every_moment_of_a_cancellation() -> None:
    async def program(control: Control) -> tuple[int, bool]:
        done = 0
        with control.cancellable() as scope:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                done += 1
            await trio.sleep(1)
            done += 1
        return done, scope.cancelled_caught

    values = [run.value or (0, False) for run in each_run(program, Exhaustive())]
    # Never; twice while asleep, before and when the clock is about to wake it; at each step.
    assert sorted(values) == [(0, True), (1, True), (2, True), (3, True), (3, True), (4, False)]


# --- planted bugs -----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("bug", "kind"),
    [
        ("lost_update", FindingKind.ASSERTION),
        ("locks_in_two_orders", FindingKind.DEADLOCK),
        ("draw_badly", FindingKind.ASSERTION),
        ("release_forgotten", FindingKind.ASSERTION),
    ],
)
def test_planted_bugs_are_found_and_replayed(strategy: str, bug: str, kind: FindingKind) -> None:
    program = programs.BUGS[bug]
    failure = explore(program, STRATEGIES[strategy](), runs_max=1000).failure
    assert failure is not None and failure.finding is not None
    assert failure.finding.kind is kind
    again = replay(program, str(failure.trace))
    assert again.trace == failure.trace
    assert again.finding == failure.finding
    assert again.steps == failure.steps


def test_priorities_find_what_random_does_not() -> None:
    assert explore(programs.rare_order, Random(seed=1), runs_max=1000).failure is None
    failure = explore(programs.rare_order, Priorities(depth=1, seed=1), runs_max=300).failure
    assert failure is not None and failure.finding is not None
    assert failure.finding.kind is FindingKind.ASSERTION


def test_a_correct_program_passes_everything() -> None:
    async def program(control: Control) -> None:
        total = 0
        lock = trio.Lock()

        async def add() -> None:
            nonlocal total
            async with lock:
                old = total
                await trio.lowlevel.checkpoint()
                total = old + 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            nursery.start_soon(add)
        assert total == 2

    for strategy in STRATEGIES.values():
        assert check(program, strategy(), runs_max=200).failure is None


def test_a_spinning_task_is_no_livelock_where_the_schedule_starves_the_other() -> None:
    exploration = explore(
        programs.spin_until_told, Priorities(depth=1, seed=1), runs_max=50, steps_max=1000
    )
    assert exploration.failure is None


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        (programs.spin_for_ever, FindingKind.LIVELOCK),
        (programs.refuse_to_end, FindingKind.LIVELOCK),
        (programs.wait_behind_a_shield, FindingKind.DEADLOCK),
        (programs.leak, FindingKind.LEAKED_TASK),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_runs_that_do_not_end_by_themselves(
    program: Callable[[Control], Awaitable[None]], kind: FindingKind
) -> None:
    strategy = Random()
    strategy.begin()
    run = run_once(program, strategy, steps_max=500)
    assert run.finding is not None
    assert run.finding.kind is kind
    assert replay(program, run.trace, steps_max=500).finding == run.finding


def test_a_deadlock_says_who_waits_where() -> None:
    failure = explore(programs.locks_in_two_orders, Exhaustive(), runs_max=100).failure
    assert failure is not None and failure.finding is not None
    assert failure.finding.message.count("take#") == 2
    assert "async with one, other" in failure.finding.message


def test_an_exception_names_its_type_and_place() -> None:
    async def program(control: Control) -> None:
        async def fail() -> None:
            raise LookupError("no such thing")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    failure = explore(program, Exhaustive(), runs_max=1).failure
    assert failure is not None and failure.finding is not None
    assert failure.finding.kind is FindingKind.EXCEPTION
    assert isinstance(failure.finding.exception, LookupError)
    assert "LookupError: no such thing (schedules/test_explorer.py:" in failure.finding.message


def test_an_interrupt_is_not_a_finding() -> None:
    async def program(control: Control) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore(program, Exhaustive(), runs_max=1)


# --- replay and shrinking ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_every_run_replays_to_the_same_digest(seed: int) -> None:
    strategy = Random(seed)
    strategy.begin()
    run = run_once(programs.queue_and_timers, strategy)
    again = replay(programs.queue_and_timers, decode(str(run.trace)))
    assert (again.trace, again.value, again.steps) == (run.trace, run.value, run.steps)


def test_runs_differ_in_their_digest() -> None:
    runs = list(islice(each_run(programs.queue_and_timers, Random()), 50))
    assert len({run.trace.digest for run in runs}) > 40


DIGESTS = """
from itertools import islice
from shardfs.checking.schedule import Priorities, Random, each_run
from tests.schedules import programs
for strategy in (Random(7), Priorities(3, 7)):
    for run in islice(each_run(programs.queue_and_timers, strategy), 20):
        logged = " ".join(map(str, run.value or ()))
        assert run.finding is None, run.finding
        print(run.trace, logged)
"""


def test_the_same_runs_under_another_hash_seed() -> None:
    outputs = set()
    for hash_seed in ("0", "1", "4711"):
        output = subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        assert output.count("\n") == 40
        outputs.add(output)
    assert len(outputs) == 1


def test_a_program_that_ignores_its_choices_is_told_apart() -> None:
    turns = iter(range(1000))

    async def program(control: Control) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2 + next(turns)):
                nursery.start_soon(trio.lowlevel.checkpoint)

    run = next(each_run(program, Random()))
    with pytest.raises(NondeterminismError, match="something it depends on"):
        replay(program, run.trace)
    turns = iter(range(1000))
    with pytest.raises(NondeterminismError, match="in the run before"):
        explore(program, Exhaustive(), runs_max=100)


async def one_bad_order_among_noise(control: Control) -> None:
    """The lost update, with much else going on."""

    async def noise() -> None:
        for _ in range(control.draw(5)):
            await trio.sleep(control.draw(3))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(noise)
        nursery.start_soon(programs.lost_update, control)


def test_shrinking_leaves_the_one_switch_that_matters() -> None:
    strategy = Random(seed=3)
    failure = explore(one_bad_order_among_noise, strategy, runs_max=1000).failure
    assert failure is not None and failure.trace.deviations > 5
    smallest = shrink(one_bad_order_among_noise, failure)
    assert smallest.finding is not None and smallest.finding.is_like(failure.finding)
    assert smallest.trace.deviations == 1
    assert replay(one_bad_order_among_noise, smallest.trace).finding == smallest.finding


def test_shrinking_keeps_to_its_attempts() -> None:
    failure = explore(one_bad_order_among_noise, Random(seed=3), runs_max=1000).failure
    assert failure is not None
    assert shrink(one_bad_order_among_noise, failure, attempts_max=0) is failure


def test_a_failed_check_tells_the_story() -> None:
    with pytest.raises(ScheduleFailure) as caught:
        check(programs.lost_update, Random(seed=1))
    text = str(caught.value)
    assert "two additions of 1 made 1" in text
    assert "1 choices off the plain schedule" in text
    assert "total = old + 1" not in text and "await trio.lowlevel.checkpoint()" in text
    replayed = replay(programs.lost_update, text.rpartition("replay: ")[2])
    assert replayed.finding is not None


# --- trio is left as it was -------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [programs.three_tasks_of_two_steps, programs.refuse_to_end, programs.lost_update],
    ids=lambda program: program.__name__,
)
def test_hooks_are_restored(program: Callable[[Control], Awaitable[object]]) -> None:
    before = (_run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING, gc.isenabled())
    run_once(program, Replay(()), steps_max=200)
    assert (_run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING, gc.isenabled()) == before


async def test_the_suite_still_runs_plain_trio_programs() -> None:
    await trio.sleep(1)


# --- long runs --------------------------------------------------------------------------------


async def many_steps(control: Control, steps: int = 250_000) -> int:
    """Four tasks of that many steps each."""
    done = 0

    async def work() -> None:
        nonlocal done
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
            done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_of_more_than_a_million_steps(
    strategy: str, record_property: Callable[[str, object], None]
) -> None:
    chosen = STRATEGIES[strategy]()
    chosen.begin()
    began = time.process_time()
    run = run_once(many_steps, chosen, steps_max=3_000_000)
    record_property("steps_per_cpu_second", round(run.steps / (time.process_time() - began)))
    assert run.value == 1_000_000
    assert run.steps > 1_000_000
    again = replay(many_steps, run.trace, steps_max=3_000_000)
    assert again.trace == run.trace


def test_the_explorer_stands_alone() -> None:
    code = (
        "import sys, shardfs.checking.schedule.store_histories\n"
        "print(*sorted(name for name in sys.modules if name.startswith('shardfs')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert "shardfs.checking.schedule.driver" in loaded
    rest = [name for name in loaded if not name.startswith("shardfs.checking.schedule")]
    assert rest == ["shardfs", "shardfs.checking", "shardfs.errors"]
