"""The `shardfs check` commands: this build against its own specification.

Role: runs campaigns of random cases, repeats a case from its line, plants mistakes that must be
found, and checks the crash states of a recorded mount. Prints progress and what came of it.

Invariants:
    I1. shardfs.checking is imported when a check runs, never by another command.
    I2. A finding's last line of output is the command that repeats it.

Not here: the checks themselves (shardfs.checking).
"""

from __future__ import annotations

import os
import random
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from shardfs.cli.errors import FINDING, SUCCESS, root_cause
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_facts, print_json, print_row, printable
from shardfs.cli.progress import progress
from shardfs.errors import UsageError

if TYPE_CHECKING:
    from shardfs.checking.canary_hunts import HuntReport
    from shardfs.checking.conformance.campaign import Totals
    from shardfs.checking.conformance.worker import Task
    from shardfs.checking.recordings import CrashReport

_SECONDS_DEFAULT: Final = 60.0
_CANARY_SECONDS_DEFAULT: Final = 600.0
_SEED_MAX: Final = 10**6
_WORLD_WIDTHS: Final = (12, -12)
_HUNT_WIDTHS: Final = (40, -5, 28, -9, -7)

canary_option = click.option("--canary", metavar="NAME", help="With this mistake planted.")


@examples(
    {
        "shardfs check": "a minute on all cores",
        "shardfs check --seconds 3600 --seed 7": "an hour, the same each time",
    }
)
@click.group(invoke_without_command=True, short_help="Check this build against its specification.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop then; default 60.")
@click.option("--sequences", type=click.IntRange(min=1), help="Stop after so many.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Processes; default one a core.")
@click.option("--seed", type=click.IntRange(0, 10**9), help="Of the campaign; default a new one.")
@click.option("--first", type=click.IntRange(min=0), default=0, help="Begin at this sequence.")
@click.option("--world", "worlds", multiple=True, metavar="WORLD", help="Only this; repeatable.")
@click.option(
    "--shrink-seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Time for making a finding small.",
)
@canary_option
@click.option("--canaries", is_flag=True, help="Plant each known mistake; all must be found.")
@click.option("--only", multiple=True, metavar="NAME", help="With --canaries: only this one.")
@json_option
@click.pass_context
def check(
    context: click.Context,
    seconds: float | None,
    sequences: int | None,
    jobs: int | None,
    seed: int | None,
    first: int,
    worlds: tuple[str, ...],
    shrink_seconds: float,
    canary: str | None,
    canaries: bool,
    only: tuple[str, ...],
    as_json: bool,
) -> int:
    """Run random sequences of operations, crashes and faults on this build and on its models.

    Nothing outside this process's memory is touched. Exit status 1 if anything is found; the last
    line then says how to repeat it.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return SUCCESS
    jobs = jobs or len(os.sched_getaffinity(0))
    if canaries:
        return _hunt(only, jobs, _CANARY_SECONDS_DEFAULT if seconds is None else seconds, as_json)
    if only:
        raise UsageError("--only chooses among canaries; say --canaries too")
    if seconds is None and sequences is None:
        seconds = _SECONDS_DEFAULT
    from shardfs.checking.conformance.worker import Task

    task = Task(
        weights=_weights(worlds),
        seed=random.SystemRandom().randrange(_SEED_MAX) if seed is None else seed,
        first=first,
        sequences=sequences,
        seconds=seconds,
        jobs=jobs,
        canary=_known(canary),
        shrink_seconds=shrink_seconds,
    )
    return _run_campaign(task, as_json)


def _refuse_options(context: click.Context) -> None:
    """Options of a campaign mean nothing to the commands below it."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = next(each for each in context.command.params if each.name == name)
            raise UsageError(
                f"{option.opts[0]} goes with a campaign, not with {context.invoked_subcommand}"
            )


def _weights(names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """The worlds to run, and how often each comes up."""
    from shardfs.checking.conformance.campaign import WEIGHTS
    from shardfs.checking.conformance.running import worlds

    known = [(name, weight) for name, weight in WEIGHTS if name in worlds()]
    known += [(name, 1) for name in worlds() if name not in dict(known)]
    for name in names:
        if name not in worlds():
            raise UsageError(f"there is no world {name!r}; there are {', '.join(worlds())}")
    return tuple(each for each in known if not names or each[0] in names)


def _known(canary: str | None) -> str | None:
    """The name, which must be a canary's."""
    if canary is not None:
        from shardfs.checking.canary_hunts import find_canary

        find_canary(canary)
    return canary


# --- campaigns ------------------------------------------------------------------------------


def _run_campaign(task: Task, as_json: bool) -> int:
    from shardfs.checking.conformance.campaign import Totals, run_campaign

    totals = Totals()
    if not as_json:
        click.echo(f"seed {task.seed}, {task.jobs} processes")
    try:
        with progress("starting") as bar:

            def changed() -> None:
                done = totals.sequences.total() if task.sequences else totals.seconds
                bar.show(done, task.sequences or task.seconds, _progress_text(totals))

            run_campaign(task, totals, changed=changed)
    except BaseException as error:  # KeyboardInterrupt is one: what was done is told
        if isinstance(root_cause(error), KeyboardInterrupt):
            _print_totals(task, totals, as_json)
        raise
    _print_totals(task, totals, as_json)
    has_missed = any(totals.missing(world) for world in totals.alphabets)
    return FINDING if totals.failure is not None or has_missed else SUCCESS


def _progress_text(totals: Totals) -> str:
    """The totals as one line."""
    if totals.failure is not None:
        return "a finding; making it small"
    covered = sum(len(totals.covered(world)) for world in totals.alphabets)
    known = sum(map(len, totals.alphabets.values()))
    sequences = totals.sequences.total()
    return (
        f"{sequences:,} sequences ({sequences / max(totals.seconds, 0.001):.0f}/s), "
        f"{covered}/{known} operations, {totals.count('crash'):,} crashes, "
        f"{totals.count('fault'):,} faults, {totals.crash_states.count:,} crash states, "
        f"{totals.seconds:.0f} s"
    )


def _print_totals(task: Task, totals: Totals, as_json: bool) -> None:
    if as_json:
        print_json(_totals_as_json(task, totals))
        return
    sequences, seconds = totals.sequences.total(), max(totals.seconds, 0.001)
    rate = sequences / seconds
    facts = [
        ("sequences", f"{sequences:,} in {seconds:.1f} s, from {task.first:,} on"),
        ("rate", f"{rate:.0f} sequences/s, {_rate_of_core(totals):.0f} a second of a core"),
        ("operations", f"{totals.operations_run:,} in {totals.steps:,} steps of tasks"),
        ("crashes", f"{totals.count('crash'):,}, to {totals.crash_states.count:,} states"),
        ("faults", f"{totals.count('fault'):,}"),
    ]
    if totals.failure is None and totals.first_undone < task.end:
        facts.append(("go on with", f"--seed {task.seed} --first {totals.first_undone}"))
    print_facts(facts)
    print_row(("WORLD", "SEQUENCES", "OPERATIONS COVERED"), _WORLD_WIDTHS)
    for world, alphabet in totals.alphabets.items():
        covered = totals.covered(world)
        missed = [each for each in alphabet if each not in covered]
        text = f"{len(covered)} of {len(alphabet)}" + ("; not " * bool(missed)) + ", ".join(missed)
        print_row((world, f"{totals.sequences[world]:,}", text), _WORLD_WIDTHS)
    for world in totals.alphabets:
        for word in totals.missing(world):
            click.echo(f"{world}: not once in all this: {word}")
    failure = totals.failure
    if failure is None:
        click.echo("no finding")
        return
    click.echo(f"\nfinding in sequence {failure.number:,}: {printable(failure.message)}")
    if failure.story:
        click.echo("made small:" if failure.is_shrunk else "not made small:")
        click.echo(failure.story)
    click.echo(_replay_text(failure.line, task.canary))


def _rate_of_core(totals: Totals) -> float:
    """Sequences for each second of processor time: what one core would do, had it nothing else."""
    return totals.sequences.total() / max(sum(totals.cpu_seconds), 0.001)


def _replay_text(line: str, canary: str | None) -> str:
    words = ["shardfs", "check", "replay", line]
    if canary is not None:
        words += ["--canary", canary]
    return f"replay: {shlex.join(words)}"


def _totals_as_json(task: Task, totals: Totals) -> dict[str, Any]:
    sequences, seconds = totals.sequences.total(), max(totals.seconds, 0.001)
    return {
        "seed": task.seed,
        "first": task.first,
        "first_undone": totals.first_undone,
        "jobs": task.jobs,
        "sequences": sequences,
        "seconds": round(seconds, 3),
        "sequences_per_second": round(sequences / seconds, 1),
        "sequences_per_core_second": round(_rate_of_core(totals), 1),
        "operations": totals.operations_run,
        "steps": totals.steps,
        "crashes": totals.count("crash"),
        "faults": totals.count("fault"),
        "crash_states": totals.crash_states.count,
        "worlds": {
            world: {
                "sequences": totals.sequences[world],
                "alphabet": alphabet,
                "covered": totals.covered(world),
                "operations": totals.operations.get(world, {}),
                "missing": totals.missing(world),
                "counts": dict(sorted(totals.counts.get(world, {}).items())),
            }
            for world, alphabet in totals.alphabets.items()
        },
        "failure": None if totals.failure is None else asdict(totals.failure),
    }


# --- one case -------------------------------------------------------------------------------


@examples(
    {
        "shardfs check replay LINE": "the line that a finding has printed",
    }
)
@check.command()
@click.argument("line")
@click.option("--story", is_flag=True, help="Print every step of the schedule.")
@canary_option
def replay(line: str, story: bool, canary: str | None) -> int:
    """Repeat the case of LINE exactly. Exit status 1 if it still is a finding."""
    from shardfs.checking.canary_hunts import planted
    from shardfs.checking.conformance.lines import decode_line
    from shardfs.checking.conformance.repeating import repeat
    from shardfs.checking.conformance.telling import tell

    case = decode_line(line)
    with planted(canary):
        repetition = repeat(case, narrated=story)
    click.echo(tell(repetition.outcome))
    click.echo(repetition.exactness)
    return FINDING if repetition.is_finding else SUCCESS


# --- planted mistakes -----------------------------------------------------------------------


def _hunt(names: Sequence[str], jobs: int, seconds_max: float, as_json: bool) -> int:
    from shardfs.checking.canaries import catalog
    from shardfs.checking.canary_hunts import find_canary, hunt_all

    canaries = [find_canary(name) for name in names] or list(catalog())
    if not as_json:
        print_row(("CANARY", "ISSUE", "CAUGHT BY", "SEQUENCES", "SECONDS", "LINE"), _HUNT_WIDTHS)
    done = _ignore if as_json else _print_hunt
    reports = hunt_all(canaries, jobs=jobs, seconds_max=seconds_max, done=done)
    survivors = [report.canary for report in reports if not report.caught]
    if as_json:
        print_json([asdict(report) for report in reports])
    else:
        click.echo(f"{len(reports) - len(survivors)} of {len(reports)} caught")
        if survivors:
            click.echo(f"not caught: {', '.join(survivors)}")
    return FINDING if survivors else SUCCESS


def _ignore(report: HuntReport) -> None:
    """All are printed at the end."""


def _print_hunt(report: HuntReport) -> None:
    cells = (
        report.canary,
        "-" if report.issue is None else str(report.issue),
        report.check if report.caught else f"NOT CAUGHT {report.check}".rstrip(),
        f"{report.sequences:,}",
        f"{report.seconds:.1f}",
        report.line or "-",
    )
    print_row(cells, _HUNT_WIDTHS)


# --- recordings -----------------------------------------------------------------------------


@examples(
    {
        "shardfs check crashes writes.rec --states 5000": "of a mount with --record writes.rec",
    }
)
@check.command()
@click.argument("file", type=PATH)
@click.option(
    "--states",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Crash states to open, about.",
)
@click.option(
    "--per-point",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="At most so many of one moment.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice."
)
@json_option
def crashes(file: str, states: int, per_point: int, seed: int, as_json: bool) -> int:
    """Check what crashes would have left of a mount that was recorded to FILE.

    `shardfs mount --record FILE` makes the recording. About --states crash states are opened and
    verified, at most --per-point of one moment. Exit status 1 if anything is found.
    """
    from shardfs.checking.recordings import check_crashes

    with progress("opening crash states") as bar:

        def show(done: int, planned: int) -> None:
            bar.show(done, planned, f"{done:,} of {planned:,} crash states")

        report = check_crashes(
            file, states_per_point=per_point, states_max=states, seed=seed, progress=show
        )
    if as_json:
        print_json({**asdict(report), "clean": report.is_clean})
    else:
        _print_crashes(file, report)
    return SUCCESS if report.is_clean else FINDING


def _print_crashes(file: str, report: CrashReport) -> None:
    for finding in report.findings:
        click.echo(printable(finding))
    if report.finding_count > len(report.findings):
        click.echo(f"and {report.finding_count - len(report.findings)} more")
    for note in report.notes:
        click.echo(f"note: {printable(note)}")
    verdict = "clean" if report.is_clean else f"{report.finding_count} findings"
    click.echo(
        f"{file}: {verdict} ({report.states:,} crash states of {report.points:,} moments, "
        f"{report.operations:,} operations, {report.promises:,} promises)"
    )
