"""Runs the damage campaign: resumable, with a report.

Role: `scripts/damage_campaign`. Rounds of a few seeds for every target, so that a run that is
stopped has looked at all of them; where it stands is kept in a file.

Not here: what a case is and how it is judged (damage_campaign.py).
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Final

import trio

from tests.fuse.damage_campaign import MEMORY_BYTES_MAX, Campaign, Case, Failure
from tests.fuse.damage_targets import make_ground

SEEDS_PER_ROUND: Final = 20
CPU_SECONDS_PER_CASE_MAX: Final = 60.0
FAILURES_KEPT: Final = 200


class Hang(BaseException):
    """A case has used too much of the processor."""


class Standing:
    """How far a campaign is, in a file.

    Args:
        path: the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.next: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.outcomes: dict[str, dict[str, int]] = {}
        self.failures: list[dict[str, Any]] = []
        if path.exists():
            for name, value in json.loads(path.read_text()).items():
                setattr(self, name, value)

    def write(self) -> None:
        """Keep it."""
        part = self.path.with_suffix(".part")
        values = {name: value for name, value in vars(self).items() if name != "path"}
        part.write_text(json.dumps(values))
        part.replace(self.path)

    def count(self, case: Case, outcome: str, seconds: float) -> None:
        """A case has been judged."""
        self.next[case.target] = max(self.next.get(case.target, 0), case.seed + 1)
        self.seconds[case.target] = self.seconds.get(case.target, 0.0) + seconds
        counts = self.outcomes.setdefault(f"{case.target}|{case.how}", {})
        counts[outcome] = counts.get(outcome, 0) + 1

    def fail(self, case: Case, error: BaseException) -> None:
        """A case has failed."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        what = f"{type(error).__name__} at {place}: {error}"[:600]
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append({"target": case.target, "seed": case.seed, "what": what})
        say(f"FAILED {case.how}: {what}\n  {_command(case.target, case.seed)}")


def _command(target: str, seed: int) -> str:
    return f"scripts/damage_campaign --case '{target}' {seed}"


def say(text: str) -> None:
    """A line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def judged(campaign: Campaign, case: Case, standing: Standing | None) -> bool:
    """One case, with its limits of time; whether it came out as it has to."""
    begun = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS_PER_CASE_MAX)
    try:
        outcome = await campaign.judge(case)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown * 1024 > MEMORY_BYTES_MAX:
            raise Failure(f"it took {grown} KiB of memory")
    except (Exception, Hang, BaseExceptionGroup) as error:
        outcome = "FAILED"
        if standing is None:
            traceback.print_exception(error)
        else:
            standing.fail(case, error)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if standing is not None:
        standing.count(case, outcome, time.process_time() - begun)
    else:
        say(f"{case}: {outcome}")
    return outcome != "FAILED"


async def run(standing: Standing, seeds: int, part: int, parts: int, only: str) -> None:
    """Every case below `seeds` that has not been run, of every `parts`-th target."""
    campaign = Campaign(await make_ground())
    gc.freeze()
    targets = [each for each in campaign.targets if only in each][part::parts]
    for first in range(0, seeds, SEEDS_PER_ROUND):
        for target in targets:
            end = min(first + SEEDS_PER_ROUND, seeds)
            for seed in range(max(first, standing.next.get(target, 0)), end):
                await judged(campaign, campaign.case(target, seed), standing)
        standing.write()
        total = sum(sum(each.values()) for each in standing.outcomes.values())
        seconds = sum(standing.seconds.values())
        say(f"{end} of {seeds} seeds, {total} cases, {seconds:.0f} s of processor, "
            f"{len(standing.failures)} failed")  # fmt: skip


async def again(standing: Standing) -> None:
    """Every case that failed, once more; those that do no longer are forgotten."""
    campaign = Campaign(await make_ground())
    failures = standing.failures
    standing.failures = []
    for each in failures:
        case = campaign.case(each["target"], each["seed"])
        if await judged(campaign, case, None):
            counts = standing.outcomes[f"{case.target}|{case.how}"]
            counts["FAILED"] -= 1
            counts["mended since"] = counts.get("mended since", 0) + 1
        else:
            standing.failures.append(each)
    standing.write()


def report(standings: list[Standing]) -> str:
    """A table: targets, cases, seconds, and what came of the kinds of damage."""
    lines = []
    kinds: dict[str, Counter[str]] = {}
    targets: dict[str, Counter[str]] = {}
    for standing in standings:
        for name, counts in standing.outcomes.items():
            target, how = name.split("|")
            kinds.setdefault(how, Counter()).update(counts)
            targets.setdefault(target, Counter()).update(counts)
    seconds = sum(sum(each.seconds.values()) for each in standings)
    cases = sum(sum(each.values()) for each in targets.values())
    lines.append(f"{cases:,} cases, {len(targets)} targets, {seconds:,.0f} s of processor")
    for title, table in (("kind of damage", kinds), ("structure or field", targets)):
        lines.append(f"\n| {title} | cases | outcomes |\n|---|---|---|")
        for name, counts in sorted(table.items()):
            told = ", ".join(f"{what} {count:,}" for what, count in sorted(counts.items()) if count)
            lines.append(f"| {name} | {sum(counts.values()):,} | {told} |")
    for standing in standings:
        for each in standing.failures:
            lines.append(f"FAILED {_command(each['target'], each['seed'])}: {each['what']}")
    return "\n".join(lines)


def _hang(_number: int, _frame: object) -> None:
    raise Hang(f"more than {CPU_SECONDS_PER_CASE_MAX:.0f} s of processor")


async def one(target: str, seed: int) -> bool:
    """One case, with what went wrong."""
    campaign = Campaign(await make_ground())
    return await judged(campaign, campaign.case(target, seed), None)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/damage_campaign",
        description="Damage every structure and field of a small store, and look what comes of it.",
    )
    parser.add_argument("--seeds", type=int, default=1000, help="of each structure and field")
    parser.add_argument("--state", type=Path, nargs="+", default=[Path("damage-campaign.json")],
                        help="where it stands: a run goes on from there")  # fmt: skip
    parser.add_argument("--part", default="0/1", help="0/2 and 1/2: half of the targets each")
    parser.add_argument("--only", default="", help="targets whose name holds this")
    parser.add_argument("--report", action="store_true", help="say what came of it so far")
    parser.add_argument("--again", action="store_true", help="run what failed once more")
    parser.add_argument("--case", nargs=2, metavar=("TARGET", "SEED"), help="this one case")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGVTALRM, _hang)
    standings = [Standing(each) for each in options.state]
    if options.report:
        say(report(standings))
    elif options.case:
        return int(not trio.run(one, options.case[0], int(options.case[1])))
    elif options.again:
        for each in standings:
            trio.run(again, each)
    else:
        part, _, parts = options.part.partition("/")
        trio.run(run, standings[0], options.seeds, int(part), int(parts), options.only)
        say(report(standings[:1]))
    return int(any(each.failures for each in standings))


if __name__ == "__main__":
    sys.exit(main())
