"""The `shardfs trace` command: every request of a mount as it is answered.

Role: listens, prints a line for each call, until ^C or SIGTERM, a number of calls, or the end of
the mount.

Invariants:
    I1. Every line is written out before the next call is waited for.
    I2. Calls that were lost because they came too fast are counted, on standard error, and in the
        JSON as lines of their own.

Not here: how calls are watched (fuse/tracing.py).
"""

from __future__ import annotations

import datetime
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from shardfs.cli.errors import root_cause
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json_line, print_row, printable
from shardfs.fuse.control import ControlClient, connect
from shardfs.fuse.targets import default_target, require_mount

_WIDTHS: Final = (15, -10, 10, 9, 22)


@examples(
    {
        "shardfs trace /srv/data": "everything, until ^C",
        "shardfs trace /srv/data --slower 10": "what takes more than 10 ms",
        "shardfs trace /srv/data --call unlink --call rename --json": "some calls, for programs",
    }
)
@click.command()
@click.argument("mountpoint", metavar="[MOUNTPOINT]", type=PATH, required=False)
@click.option("--call", "calls", multiple=True, metavar="CALL", help="Only this; repeatable.")
@click.option("--slower", type=click.FloatRange(min=0), default=0, help="Only from so many ms on.")
@click.option("--path", "below", type=PATH, help="Only this path in the mount, and all below it.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many calls.")
@json_option
def trace(
    mountpoint: str | None,
    calls: tuple[str, ...],
    slower: float,
    below: str | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Print every request that the kernel sends to the mount at MOUNTPOINT, as it is answered.

    What the kernel answers from its caches is not seen. Durations are the server's. A program that
    works in the mount is never held up: what comes faster than it can be printed is dropped and
    counted. With --json, each call is one line.

    Without an argument: the mount that the current directory is in, or the only one there is.
    """
    name = mountpoint if mountpoint is not None else default_target()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        trio.run(partial(_trace, name, list(calls), slower, below, count, as_json))
    except BaseException as error:  # ^C, and SIGTERM like it, is how it ends
        if not isinstance(root_cause(error), KeyboardInterrupt):
            raise


async def _trace(
    name: str,
    calls: list[str],
    slower: float,
    below: str | None,
    count: int | None,
    as_json: bool,
) -> None:
    inner = None if below is None else "/" + below.strip("/")
    async with connect(require_mount(name)) as client:
        await client.answer({"request": "trace-begin", "calls": calls, "slower_us": 1000 * slower})
        if not as_json:
            print_row(("TIME", "DURATION", "CALL", "RESULT", "PROCESS", "PATH"), _WIDTHS)
        printed = 0
        async with aclosing(_calls(client, as_json)) as heard:
            async for call in heard:
                if inner is not None and not _is_below(call, inner):
                    continue
                if as_json:
                    print_json_line(call)
                else:
                    print_row(_cells(call), _WIDTHS)
                printed += 1
                if printed == count:
                    return


async def _calls(client: ControlClient, as_json: bool) -> AsyncGenerator[dict[str, Any], None]:
    """Calls as they come; says when some were lost (I2)."""
    while True:
        answer = await client.answer({"request": "trace-more"})
        if answer["dropped"] and as_json:
            print_json_line({"dropped": answer["dropped"]})
        elif answer["dropped"]:
            click.echo(f"{answer['dropped']:,} calls came too fast and were dropped", err=True)
        for call in answer["calls"]:
            yield call


def _is_below(call: dict[str, Any], path: str) -> bool:
    """The call is about the path, or about something below it."""
    start = path.rstrip("/") + "/"
    return any(f"{each}/".startswith(start) for each in _paths(call))


def _paths(call: dict[str, Any]) -> Iterator[str]:
    for key in ("path", "target"):
        if call[key] is not None:
            yield call[key]


def _cells(call: dict[str, Any]) -> tuple[str, ...]:
    moment = datetime.datetime.fromtimestamp(call["time_ns"] / 1e9)
    pid = call["pid"]
    shown = " -> ".join(printable(each) for each in _paths(call))
    return (
        moment.strftime("%H:%M:%S.%f"),
        f"{call['duration_us']:,.0f} us",
        call["call"],
        call["result"],
        "-" if pid is None else f"{pid} {_command_of(pid)}".rstrip(),
        f"{shown}  {printable(call['detail'])}".strip(),
    )


def _command_of(pid: int) -> str:
    """What a process calls itself, if it is still there."""
    try:
        return printable(Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n"))
    except OSError:
        return ""
