"""Many cases over several processes: progress, totals, and the first finding.

Role: starts one worker process (worker.py) for each job, adds up what they report, and ends when
the cases or the time are used up, or with the first finding, which its worker makes small.

Invariants:
    I1. The cases of a campaign are decided by its seed, its worlds and their numbers; the number
        of processes changes only who runs them.
    I2. When `run_campaign` returns or raises, none of its processes is left.
    I3. Memory does not grow with the number of cases.

Ordering: a worker that ends without having said so is a finding like any other.

Not here: what a case is (case.py), printing (cli/check.py).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import IO, Any, Final

import trio
from rbloom import Bloom

from shardfs.checking.conformance.lines import encode_line
from shardfs.checking.conformance.worker import Task, read_position
from shardfs.errors import ShardfsError

WEIGHTS: Final = (("store", 6), ("files", 3), ("extents", 2), ("concurrent", 1))
"""How often each world comes up when the user names none."""

COMMAND: Final = (sys.executable, "-m", "shardfs.checking.conformance.worker")
"""Starts a worker; its task is appended."""

WANTED: Final = {
    "store": (
        *("reclaim extent evacuated", "reclaim survivor moved", "gathered", "merge"),
        *("resize grown", "resize shrunk"),
    ),
    "files": ("reclaim extent evacuated", "reclaim survivor moved", "resize shrunk"),
}
"""What has to happen in each world, else its cases look at too little."""
WANTED_SEQUENCES: Final = 2000
"""In so many sequences of that world."""

_CRASH_STATES_EXPECTED: Final = 50_000_000
_COMPLAINT_BYTES_MAX: Final = 4000
_KILL_SECONDS_MAX: Final = 10.0


class WorkerError(ShardfsError):
    """A worker process could not begin."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The finding that ended a campaign.

    Args:
        number: of the case in the campaign.
        line: the word that repeats it.
        message: the finding, on one line.
        story: the case in words, on many.
        is_shrunk: the line is the smallest one found, not the first.
    """

    number: int
    line: str
    message: str
    story: str
    is_shrunk: bool = False


class CrashStates:
    """How many different device contents were seen after crashes, in bounded memory.

    At most one in a hundred is taken for one seen before, up to fifty million.
    """

    def __init__(self) -> None:
        self._seen = Bloom(_CRASH_STATES_EXPECTED, 0.01)
        self.count = 0

    def add(self, states: Iterable[int]) -> None:
        """Count those that are new."""
        for state in states:
            if state not in self._seen:
                self._seen.add(state)
                self.count += 1


@dataclass(slots=True)
class Totals:
    """What a campaign has gone through so far."""

    started: float = field(default_factory=time.monotonic)
    """When the first worker was ready."""
    ended: float | None = None
    sequences: Counter[str] = field(default_factory=Counter)
    """By world."""
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By world: what its Coverage counts."""
    alphabets: dict[str, list[str]] = field(default_factory=dict)
    """By world: names of its operations."""
    operations: dict[str, Counter[str]] = field(default_factory=dict)
    """By world and name."""
    steps: int = 0
    crash_states: CrashStates = field(default_factory=CrashStates)
    next_numbers: list[int] = field(default_factory=list)
    """By worker: the first case that it has not done."""
    cpu_seconds: list[float] = field(default_factory=list)
    """By worker: processor time for its cases."""
    failure: Failure | None = None

    @property
    def first_undone(self) -> int:
        """Number of a case before which all have been done."""
        return min(self.next_numbers)

    @property
    def seconds(self) -> float:
        """How long it took, without the start of the processes."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    def end(self) -> None:
        """Stop the clock."""
        if self.ended is None:
            self.ended = time.monotonic()

    def count(self, first_word: str) -> int:
        """How often something happened: "crash", "fault"."""
        return sum(
            count
            for counts in self.counts.values()
            for word, count in counts.items()
            if word.partition(" ")[0] == first_word
        )

    @property
    def operations_run(self) -> int:
        """Of all worlds."""
        return sum(counts.total() for counts in self.operations.values())

    def covered(self, world: str) -> list[str]:
        """The operations of a world's alphabet that have been run."""
        counts = self.operations.get(world, Counter())
        return [each for each in self.alphabets.get(world, ()) if counts[each]]

    def missing(self, world: str) -> list[str]:
        """What should have come up in this world, and has not; empty for a short campaign."""
        if self.sequences[world] < WANTED_SEQUENCES:
            return []
        counts = self.counts.get(world, Counter())
        return [word for word in WANTED.get(world, ()) if not counts[word]]

    def take(self, worker: int, progress: dict[str, Any]) -> None:
        """Add a worker's report of progress."""
        self.next_numbers[worker] = progress["next"]
        self.cpu_seconds[worker] = progress["cpu"]
        for world, share in progress["shares"].items():
            self.sequences[world] += share["sequences"]
            self.counts.setdefault(world, Counter()).update(share["counts"])
            self.operations.setdefault(world, Counter()).update(share["operations"])
            self.steps += share["steps"]
            self.crash_states.add(share["crash_states"])


def run_campaign(
    task: Task,
    totals: Totals,
    *,
    changed: Callable[[], None] = lambda: None,
) -> Failure | None:
    """Run a campaign to its end; its first finding.

    Args:
        task: without a worker's number: what all of them share.
        totals: is kept up to date, also when an exception ends the campaign.
        changed: called whenever the totals have changed.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the workers have been ended.
        WorkerError: a worker ended before its first case.
    """
    campaign = _Campaign(task, totals, changed)
    try:
        trio.run(campaign.run)
    finally:
        totals.end()
    if campaign.error is not None:
        raise campaign.error
    if campaign.is_interrupted:
        raise KeyboardInterrupt
    return totals.failure


class _Campaign:
    """Follows the workers of a campaign."""

    def __init__(self, task: Task, totals: Totals, changed: Callable[[], None]) -> None:
        self._task = task
        self._totals = totals
        self._changed = changed
        self._finder: int | None = None
        totals.next_numbers = [task.first] * task.jobs
        totals.cpu_seconds = [0.0] * task.jobs
        self._scopes = [trio.CancelScope() for _ in range(task.jobs)]
        self.is_interrupted = False
        self.error: WorkerError | None = None

    async def run(self) -> None:
        """Until all workers have ended, or a signal comes."""
        async with trio.open_nursery() as outer:
            await outer.start(self._watch_signals, outer.cancel_scope)
            async with trio.open_nursery() as nursery:
                for worker in range(self._task.jobs):
                    nursery.start_soon(self._follow, worker)
            outer.cancel_scope.cancel()

    async def _watch_signals(
        self,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                self.is_interrupted = True
                scope.cancel()

    async def _follow(self, worker: int) -> None:
        """One worker's life."""
        with (
            self._scopes[worker],
            tempfile.TemporaryFile() as position,
            tempfile.TemporaryFile() as complaints,
        ):
            task = replace(self._task, worker=worker, position_descriptor=position.fileno())
            process = await trio.lowlevel.open_process(
                [*COMMAND, task.encode()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                pass_fds=(position.fileno(),),
            )
            try:
                assert process.stdout is not None
                has_ended = False
                async for kind, value in _reports(process.stdout):
                    has_ended = kind == "end"
                    self._take(worker, kind, value)
                status = await process.wait()
                if not has_ended or status != 0:
                    self._take_death(worker, status, position, complaints)
            finally:
                with trio.move_on_after(_KILL_SECONDS_MAX, shield=True):
                    process.kill()
                    await process.wait()

    def _take(self, worker: int, kind: str, value: Any) -> None:
        totals = self._totals
        if kind == "alphabets":
            if not totals.alphabets:
                totals.started = time.monotonic()
            totals.alphabets.update(value)
        elif kind == "progress":
            totals.take(worker, value)
        elif self._finder not in (None, worker):
            return  # It came a moment too late.
        elif kind == "finding":
            self._end_with(worker, Failure(**value))
        elif kind == "smallest":
            totals.failure = Failure(**value, is_shrunk=True)
        self._changed()

    def _end_with(self, worker: int, failure: Failure) -> None:
        """One finding is enough; what the others would still report does not count."""
        self._totals.end()
        self._totals.failure = failure
        self._finder = worker
        self._end_others(worker)

    def _end_others(self, worker: int) -> None:
        for number, scope in enumerate(self._scopes):
            if number != worker:
                scope.cancel()

    def _take_death(
        self, worker: int, status: int, position: IO[bytes], complaints: IO[bytes]
    ) -> None:
        length = complaints.seek(0, 2)
        complaints.seek(max(0, length - _COMPLAINT_BYTES_MAX))
        said = complaints.read().decode(errors="replace").strip()
        if self._finder is not None:
            return  # It died of making its finding small; the finding as it was is told.
        number = read_position(position.fileno())
        if number is None:
            last = said.splitlines()[-1] if said else "it said nothing"
            text = f"a worker ended with status {status} before its first case: {last}"
            self.error = WorkerError(text)
            self._end_others(worker)
            return
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        if "Timeout (" in said:
            how = f"took longer than {self._task.case_seconds_max:g} s"
        line = encode_line(self._task.case(number))
        self._end_with(worker, Failure(number, line, f"the process of the case {how}", said))
        self._changed()


async def _reports(stream: trio.abc.ReceiveStream) -> AsyncIterator[tuple[str, Any]]:
    """The lines of a worker's output, decoded."""
    buffer = b""
    async for chunk in stream:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            kind, value = json.loads(line)
            yield kind, value
