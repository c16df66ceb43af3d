"""Hunts the planted mistakes, each in a process of its own.

Role: `hunt_all` plants the canaries one by one and runs the ordinary checks until they object, or
the time is up. `python -m shardfs.checking.canary_hunts NAME SECONDS` hunts one.

Invariants:
    I1. A mistake is planted in a process that does nothing else, so it cannot outlive its hunt.
    I2. When `hunt_all` returns or raises, none of its processes is left.

Not here: the mistakes, and how one is hunted (canaries/).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import trio

from shardfs.checking.canaries import Canary, catalog, hunt
from shardfs.errors import UsageError

_GRACE_SECONDS: Final = 120.0
"""A case of a hunt may take that long beyond the hunt's time."""


@dataclass(frozen=True, slots=True)
class HuntReport:
    """What came of one canary.

    Args:
        canary: its name.
        issue: number of the published issue with the same mechanism, or None.
        caught: whether a check objected.
        check: the world that did, or why none could.
        sequences: it took.
        seconds: it took.
        line: repeats the case that caught it, with the canary planted; empty if there is none.
        finding: in words.
    """

    canary: str
    issue: int | None
    caught: bool
    check: str
    sequences: int
    seconds: float
    line: str
    finding: str


def find_canary(name: str) -> Canary:
    """The canary of a name.

    Raises:
        UsageError: there is none.
    """
    for canary in catalog():
        if canary.name == name:
            return canary
    names = ", ".join(each.name for each in catalog())
    raise UsageError(f"there is no canary {name!r}; there are {names}")


def planted(name: str | None) -> AbstractContextManager[None]:
    """The mistake of a name is planted while the context lasts; without a name, none.

    Raises:
        UsageError: there is no such canary.
    """
    return contextlib.nullcontext() if name is None else find_canary(name).planted()


def hunt_all(
    canaries: Sequence[Canary],
    *,
    jobs: int,
    seconds_max: float,
    done: Callable[[HuntReport], None],
) -> list[HuntReport]:
    """Hunt canaries, `jobs` of them at a time; what came of each, in their order.

    Args:
        canaries: to hunt.
        jobs: processes at a time.
        seconds_max: for each.
        done: called with each report as soon as it is there.
    """
    reports: dict[str, HuntReport] = {}

    async def hunt_one(canary: Canary) -> None:
        async with limiter:
            report = await _hunt_apart(canary, seconds_max)
        reports[canary.name] = report
        done(report)

    async def hunt_each() -> None:
        async with trio.open_nursery() as nursery:
            for canary in canaries:
                nursery.start_soon(hunt_one, canary)

    limiter = trio.CapacityLimiter(jobs)
    trio.run(hunt_each)
    return [reports[canary.name] for canary in canaries]


async def _hunt_apart(canary: Canary, seconds_max: float) -> HuntReport:
    """The hunt in a process of its own."""
    started = trio.current_time()
    done = await trio.run_process(
        [sys.executable, "-m", __name__, canary.name, str(seconds_max)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        deliver_cancel=_kill,
    )
    if done.returncode == 0:
        return HuntReport(**json.loads(done.stdout.splitlines()[-1]))
    said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    # A mistake that makes a case run for ever is caught by the clock.
    is_caught = any(line.startswith("Timeout (") for line in said)
    check = "a case that does not end" if is_caught else f"hunt broke off: {said[-1]}"
    seconds = trio.current_time() - started
    return HuntReport(canary.name, canary.issue, is_caught, check, 0, seconds, "", said[-1])


async def _kill(process: trio.Process) -> None:
    process.kill()


def _hunt_here(canary: Canary, seconds_max: float) -> dict[str, Any]:
    faulthandler.dump_traceback_later(seconds_max + _GRACE_SECONDS, exit=True)
    found = hunt(canary, seconds_max=seconds_max)
    return {
        "canary": canary.name,
        "issue": canary.issue,
        "caught": found.caught,
        "check": found.check,
        "sequences": found.sequences,
        "seconds": found.seconds,
        "line": found.line,
        "finding": found.finding,
    }


def main() -> None:
    """Hunt the canary of the command line; the report is the last line of output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, seconds = sys.argv[1:]
    report = json.dumps(_hunt_here(find_canary(name), float(seconds)))
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main()
