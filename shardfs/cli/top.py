"""The `shardfs top` command: what a mount does right now, in a terminal.

Role: asks the mount again and again, and keeps a picture of it on the terminal until q, ^C or the
end of the mount.

Invariants:
    I1. However it ends, by a key, a signal or an error, the terminal is as it was.
    I2. It asks no more than once an interval, and one request at a time: a slow mount is not asked
        faster than it answers.

Not here: the figures (cli/top_figures.py), the picture (cli/top_view.py).
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import click
import trio

from shardfs.cli.errors import root_cause
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, print_json_line
from shardfs.cli.top_figures import Look, figures
from shardfs.errors import UsageError
from shardfs.fuse.control import ControlClient, connect
from shardfs.fuse.targets import default_target, require_mount

INTERVAL_S: Final = 1.0
_SPACE_EVERY: Final = 5
"""Where the bytes are is asked for less often: it takes longer, and changes slowly."""
_QUIT: Final = frozenset("qQ\x03\x04")

Show = Callable[[dict[str, Any]], None]


@examples(
    {
        "shardfs top": "of the mount that one is in",
        "shardfs top /srv/data --interval 5": "slower",
        "shardfs top /srv/data --once --json": "one interval, for programs",
    }
)
@click.command()
@click.argument("mountpoint", metavar="[MOUNTPOINT]", type=PATH, required=False)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=INTERVAL_S,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="One interval, then end.")
@json_option
def top(mountpoint: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch the mount at MOUNTPOINT: requests, latencies, caches, buffers, debts, health.

    Durations are the server's: from when it begins with a request to when its answer is ready.
    Debts say how far background work is behind: above 50 % it slows writers, at 100 % they wait.
    Ends with q. With --json one line an interval.

    Without an argument: the mount that the current directory is in, or the only one there is.
    """
    name = mountpoint if mountpoint is not None else default_target()
    run = partial(_watch, name, interval, once)
    if as_json:
        trio.run(run, print_json if once else print_json_line)
    elif once:
        trio.run(run, _print_once)
    else:
        _on_terminal(run)


async def _watch(name: str, interval: float, once: bool, show: Show) -> None:
    """Show the figures of one interval after the other."""
    async with connect(require_mount(name)) as client:
        info = await client.answer({"request": "info"})
        before = await _look(client, info, None)
        number = 0
        while not once or not number:
            await trio.sleep(interval)
            number += 1
            now = await _look(client, info, before if number % _SPACE_EVERY else None)
            show(figures(before, now))
            before = now


async def _look(client: ControlClient, info: dict[str, Any], last: Look | None) -> Look:
    stat = await client.answer({"request": "stat"})
    space = last.space if last is not None else await client.answer({"request": "space"})
    return Look(trio.current_time(), stat, space, info)


def _print_once(shown: dict[str, Any]) -> None:
    from rich.console import Console

    from shardfs.cli.top_view import view

    console = Console(highlight=False)
    console.print(view(shown, console.width, sys.maxsize))


def _on_terminal(run: Callable[[Show], Any]) -> None:
    """Watch on a screen of its own (I1)."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from shardfs.cli.top_view import view

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal; elsewhere use: shardfs top --once, or --json")
    console = Console(highlight=False)
    with (
        _keys_at_once(),
        Live(Text("looking ..."), console=console, screen=True, auto_refresh=False) as live,
    ):

        def show(shown: dict[str, Any]) -> None:
            live.update(view(shown, console.width, console.height, "q ends"), refresh=True)

        try:
            trio.run(_until_told, partial(run, show))
        except BaseException as error:  # ^C is the other way to end it
            if not isinstance(root_cause(error), KeyboardInterrupt):
                raise


async def _until_told(watch: Callable[[], Any]) -> None:
    """Watch until a key or a signal says that it is enough."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(_end_at_signal, nursery.cancel_scope)
        while True:
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
            keys = os.read(sys.stdin.fileno(), 64).decode(errors="replace")
            if not keys or _QUIT & set(keys):
                nursery.cancel_scope.cancel()
                return


async def _end_at_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            scope.cancel()


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys arrive when they are pressed, and are not shown."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
