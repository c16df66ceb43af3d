"""One process of a campaign: runs its share of the cases, and reports twice a second.

Role: `python -m shardfs.checking.conformance.worker TASK` with a Task as JSON. Reports are lines
of JSON on standard output: "alphabets" first, then "progress" again and again, "finding" and
"smallest" if there is one, "end" last. A process that ends without "end" died in the case whose
number is in the file `Task.position_descriptor`.

Invariants:
    I1. Case number n of a campaign is decided by the campaign's seed and n, whoever runs it.
    I2. The process outlives nobody: without a reader its next report ends it (SIGPIPE), and a case
        that takes longer than `case_seconds_max` ends it too, with a traceback on standard error.
    I3. One case in REPEAT_EVERY is run twice; another digest is a finding.

Not here: starting processes, adding up (campaign.py).
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from shardfs.checking.conformance.running import Case, Outcome, run_case, worlds
from shardfs.checking.conformance.shrinking import shrink_case
from shardfs.checking.conformance.telling import tell, tell_finding
from shardfs.errors import UsageError

REPORT_SECONDS: Final = 0.5
REPEAT_EVERY: Final = 512
SEQUENCES_MAX: Final = 10**9
"""Sequences of one seed of a campaign: the seed of a case is campaign seed * this + number."""
_SHARE: Final = 16
"""Cases in a row for one process, so that no pattern in the numbers makes its share special."""
_NUMBER_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Task:
    """What one process has to do.

    Args:
        weights: (world, weight): how often each world comes up.
        seed: of the campaign.
        first: number of the campaign's first case.
        sequences: how many cases the campaign has; None for no end.
        seconds: after which no case is begun; None for no end.
        worker, jobs: this process is number `worker` of `jobs`.
        canary: a planted mistake, for as long as the process lives.
        shrink_seconds: to spend on making a finding small.
        case_seconds_max: a case that takes longer is a finding.
        position_descriptor: an open file that gets the number of the case at hand.

    Raises:
        UsageError: the campaign's seed has not so many sequences.
    """

    weights: tuple[tuple[str, int], ...]
    seed: int
    first: int = 0
    sequences: int | None = None
    seconds: float | None = None
    worker: int = 0
    jobs: int = 1
    canary: str | None = None
    shrink_seconds: float = 60.0
    case_seconds_max: float = 120.0
    position_descriptor: int = -1

    def __post_init__(self) -> None:
        if self.first + (self.sequences or 0) > SEQUENCES_MAX:
            raise UsageError(f"a seed has {SEQUENCES_MAX:,} sequences; begin with another seed")

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Task:
        """The task that `encode` wrote."""
        values = json.loads(text)
        values["weights"] = tuple((name, weight) for name, weight in values["weights"])
        return cls(**values)

    @property
    def end(self) -> int:
        """Number behind the campaign's last case."""
        return SEQUENCES_MAX if self.sequences is None else self.first + self.sequences

    def case(self, number: int) -> Case:
        """The case of a number (I1)."""
        seed = self.seed * SEQUENCES_MAX + number
        names = [name for name, _ in self.weights]
        # Not Random(seed): from that the world draws its operations.
        rng = random.Random(f"world {seed}")
        world = names[0] if len(names) == 1 else rng.choices(names, [w for _, w in self.weights])[0]
        return Case(world, seed)

    def numbers(self) -> Iterator[int]:
        """Numbers of the cases that are this process's share."""
        for start in range(self.first + self.worker * _SHARE, self.end, self.jobs * _SHARE):
            yield from range(start, min(start + _SHARE, self.end))


@dataclass(slots=True)
class Share:
    """What a process has gone through in one world since its last report."""

    sequences: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    crash_states: set[int] = field(default_factory=set)

    def take(self, outcome: Outcome) -> None:
        """Add one case."""
        self.sequences += 1
        self.operations.update(operation.name for operation in outcome.operations)
        self.steps += outcome.run.steps
        self.counts.update(outcome.coverage.counts)
        self.crash_states |= outcome.coverage.crash_states

    def as_report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sequences": self.sequences,
            "operations": self.operations,
            "steps": self.steps,
            "counts": self.counts,
            "crash_states": [*self.crash_states],
        }


class Worker:
    """Runs a task.

    Args:
        task: see Task.
        descriptor: where reports go.
    """

    def __init__(self, task: Task, descriptor: int) -> None:
        self._task = task
        self._descriptor = descriptor
        self._shares: dict[str, Share] = {}
        self._reported = 0.0
        self._cpu_before = 0.0

    def run(self) -> None:
        """Run the share, up to the first finding; reports say what came of it."""
        task = self._task
        self._report("alphabets", {name: list(worlds()[name].alphabet) for name, _ in task.weights})
        # What the modules made stays; collections need not look at it again and again.
        gc.freeze()
        self._arm(task.case_seconds_max)
        started = self._reported = time.monotonic()
        self._cpu_before = time.process_time()
        for number in task.numbers():
            now = time.monotonic()
            is_over = task.seconds is not None and now - started >= task.seconds
            if is_over or now - self._reported >= REPORT_SECONDS:
                self._report_progress(number, now)
            if is_over or not self._run_case(number):
                break
        else:
            self._report_progress(task.end, time.monotonic())
        self._report("end", None)

    def _run_case(self, number: int) -> bool:
        """Whether all went well."""
        task = self._task
        case = task.case(number)
        if task.position_descriptor >= 0:
            position = number.to_bytes(_NUMBER_BYTES, "little")
            os.pwrite(task.position_descriptor, position, 0)
        outcome = run_case(case)
        self._shares.setdefault(case.world, Share()).take(outcome)
        if outcome.run.finding is not None:
            self._report_finding(number, outcome)
            return False
        if number % REPEAT_EVERY == 0 and run_case(case).digest != outcome.digest:
            self._report_progress(number, time.monotonic())
            message = "the same case ran twice in two ways: something beside its seed decides"
            self._report("finding", _failure(number, outcome, message, tell(outcome)))
            return False
        return True

    def _report_finding(self, number: int, outcome: Outcome) -> None:
        seconds = self._task.shrink_seconds
        self._report_progress(number, time.monotonic())
        self._report("finding", _failure(number, outcome, tell_finding(outcome), tell(outcome)))
        if seconds <= 0:
            return
        self._arm(seconds + self._task.case_seconds_max)
        smallest = shrink_case(outcome, seconds_max=seconds)
        self._report("smallest", _failure(number, smallest, tell_finding(smallest), tell(smallest)))

    def _report_progress(self, number: int, now: float) -> None:
        """Report what was done before the case of this number."""
        shares = {name: share.as_report() for name, share in self._shares.items()}
        self._shares.clear()
        self._reported = now
        cpu_seconds = time.process_time() - self._cpu_before
        self._report("progress", {"next": number, "cpu": cpu_seconds, "shares": shares})
        self._arm(self._task.case_seconds_max)

    def _report(self, kind: str, value: Any) -> None:
        data = memoryview(json.dumps([kind, value]).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]

    @staticmethod
    def _arm(seconds: float) -> None:
        """From now on, `seconds` without another call end the process (I2)."""
        faulthandler.dump_traceback_later(seconds, exit=True)


def _failure(number: int, outcome: Outcome, message: str, story: str) -> dict[str, Any]:
    return {"number": number, "line": outcome.line, "message": message, "story": story}


def read_position(descriptor: int) -> int | None:
    """Number of the case that a process was in; None if it has begun none."""
    data = os.pread(descriptor, _NUMBER_BYTES, 0)
    return int.from_bytes(data, "little") if data else None


def main() -> None:
    """Run the task of the command line."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # Ctrl-C goes to the whole group of processes; the campaign ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is printed by mistake must not get among the reports.
    descriptor = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = Task.decode(sys.argv[1])
    with ExitStack() as stack:
        if task.canary is not None:
            from shardfs.checking.canary_hunts import planted

            stack.enter_context(planted(task.canary))
        Worker(task, descriptor).run()


if __name__ == "__main__":
    main()
