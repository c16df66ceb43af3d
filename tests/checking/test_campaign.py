"""Campaigns: the same cases whoever runs them, and whatever happens to a process is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shardfs.checking.conformance import campaign
from shardfs.checking.conformance.campaign import (
    WANTED,
    WANTED_SEQUENCES,
    CrashStates,
    Totals,
    WorkerError,
    run_campaign,
)
from shardfs.checking.conformance.lines import decode_line
from shardfs.checking.conformance.worker import SEQUENCES_MAX, Task
from shardfs.errors import UsageError
from tests.checking.fake_worlds import COMMAND
from tests.tidy.sources import REPOSITORY

SECONDS_MAX = 60


@pytest.fixture(autouse=True)
def fake_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(campaign, "COMMAND", COMMAND)


def task_of(*worlds: str, **values: Any) -> Task:
    return Task(weights=tuple((world, 1) for world in worlds), **{"seed": 5, **values})


def children() -> set[int]:
    """Processes whose parent is this one."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return set(map(int, text.split()))


def shell(*arguments: str, hash_seed: str = "0") -> subprocess.Popen[str]:
    """The command shardfs in the fake worlds, as a process of its own."""
    return subprocess.Popen(
        [*COMMAND[:-1], *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )


def output_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=SECONDS_MAX)
    return process.returncode, output, errors


# --- which cases ----------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_every_number_is_in_one_share(jobs: int) -> None:
    tasks = [task_of("calm", first=7, sequences=100, worker=w, jobs=jobs) for w in range(jobs)]
    numbers = [number for task in tasks for number in task.numbers()]
    assert sorted(numbers) == list(range(7, 107))


def test_worlds_come_up_by_their_weights() -> None:
    task = Task(weights=(("calm", 3), ("failing", 1)), seed=1)
    cases = [task.case(number) for number in range(4000)]
    assert cases == [Task.decode(task.encode()).case(number) for number in range(4000)]
    assert len({case.seed for case in cases}) == 4000
    assert Counter(case.world for case in cases)["calm"] == pytest.approx(3000, rel=0.05)
    # Nor does the world depend on what else the number decides: every fourth case has priorities.
    assert Counter(case.world for case in cases[3::4])["calm"] == pytest.approx(750, rel=0.1)


def test_processes_change_only_who_runs_a_case() -> None:
    found = []
    for jobs in (1, 2):
        totals = Totals()
        assert run_campaign(task_of("calm", sequences=300, jobs=jobs), totals) is None
        assert totals.first_undone == 300
        found.append(
            (
                totals.sequences,
                totals.operations,
                totals.counts,
                totals.steps,
                totals.crash_states.count,
            )
        )
    assert found[0] == found[1]
    assert found[0][0] == {"calm": 300}
    assert children() == set()


def test_the_clock_ends_a_campaign() -> None:
    totals = Totals()
    assert run_campaign(task_of("calm", seconds=1.0, jobs=2), totals) is None
    assert 0.9 < totals.seconds < 30
    assert totals.sequences["calm"] > 50
    assert totals.covered("calm") == ["add", "crash", "trouble"]
    assert totals.count("crash") > 10 and totals.count("fault") == 0
    assert 0 < totals.first_undone <= totals.sequences["calm"]


def test_a_seed_has_an_end() -> None:
    with pytest.raises(UsageError, match="another seed"):
        task_of("calm", first=SEQUENCES_MAX, sequences=1)


def test_crash_states_are_counted_once() -> None:
    states = CrashStates()
    states.add(range(5000))
    states.add(range(4000, 6000))
    assert 5900 <= states.count <= 6000


# --- findings -------------------------------------------------------------------------------


def test_a_finding_is_made_small_and_repeats_in_another_process() -> None:
    totals = Totals()
    failure = run_campaign(task_of("calm", "failing", sequences=1000, jobs=2), totals)
    assert failure is not None and failure is totals.failure
    assert failure.is_shrunk and "a planted mistake" in failure.message
    case = decode_line(failure.line)
    assert case.operations is not None and len(case.operations) == 1
    assert "trouble 20" in failure.story
    assert children() == set()
    outputs = set()
    for hash_seed in ("1", "2"):
        process = shell("check", "replay", failure.line, hash_seed=hash_seed)
        status, output, errors = output_of(process)
        assert (status, errors) == (1, "")
        assert "a planted mistake" in output and "digest included" in output
        outputs.add(output)
    assert len(outputs) == 1


def test_a_finding_may_stay_as_it_is() -> None:
    failure = run_campaign(task_of("failing", sequences=1000, shrink_seconds=0), Totals())
    assert failure is not None and not failure.is_shrunk
    case = decode_line(failure.line)
    assert case.operations is None and case.digest
    assert case.seed == task_of("failing").case(failure.number).seed


def test_a_case_that_kills_its_process_is_a_finding() -> None:
    failure = run_campaign(task_of("dying", sequences=1000, jobs=2), Totals())
    assert failure is not None
    assert "signal 9" in failure.message
    assert decode_line(failure.line) == task_of("dying").case(failure.number)
    assert children() == set()


def test_a_case_that_does_not_end_is_a_finding() -> None:
    task = task_of("hanging", sequences=1000, case_seconds_max=1.0)
    failure = run_campaign(task, Totals())
    assert failure is not None
    assert failure.message.endswith("took longer than 1 s")
    assert "_make_trouble" in failure.story
    assert decode_line(failure.line) == task.case(failure.number)


def test_a_worker_that_cannot_begin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "COMMAND", (sys.executable, "-c", "raise SystemExit('no luck')"))
    with pytest.raises(WorkerError, match="status 1 before its first case: no luck"):
        run_campaign(task_of("calm", sequences=10, jobs=2), Totals())


# --- the end of it --------------------------------------------------------------------------


def workers_of(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return set(map(int, text.split()))


def wait_for_workers(process: subprocess.Popen[str]) -> set[int]:
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        workers = workers_of(process.pid)
        if len(workers) == 2 and all(Path(f"/proc/{pid}/fd/1").exists() for pid in workers):
            return workers
        time.sleep(0.05)
    raise AssertionError("the workers do not start")


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its campaign"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has waited for."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "State:\tZ" not in status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_and_tells_what_was_done(number: signal.Signals) -> None:
    process = shell("check", "--world", "calm", "--seconds", "600", "--jobs", "2", "--json")
    workers = wait_for_workers(process)
    time.sleep(1.5)
    process.send_signal(number)
    status, output, errors = output_of(process)
    assert not any(map(is_running, workers))
    assert status == 130 and errors.endswith("shardfs: interrupted\n")
    assert json.loads(output)["failure"] is None


def test_workers_go_when_the_campaign_is_killed() -> None:
    process = shell("check", "--world", "calm", "--seconds", "600", "--jobs", "2")
    workers = wait_for_workers(process)
    process.kill()
    process.communicate(timeout=SECONDS_MAX)
    wait_until_gone(workers)


def test_a_campaign_in_which_nothing_is_evacuated_looks_at_too_little() -> None:
    totals = Totals()
    totals.sequences["files"] = WANTED_SEQUENCES - 1
    assert totals.missing("files") == []
    totals.sequences["files"] += 1
    assert totals.missing("files") == list(WANTED["files"])
    totals.counts["files"] = Counter(dict.fromkeys(WANTED["files"], 1))
    assert totals.missing("files") == []
    assert totals.missing("extents") == []
