"""The `shardfs stat` command: the figures that a mount counts.

Role: one request, printed: for people, as JSON, or as Prometheus metrics.

Not here: what is counted (engine/stats.py, fuse/session.py), what it does right now (cli/top.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import click
import trio

from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_facts, print_json, print_row, size_text
from shardfs.fuse.control import connect
from shardfs.fuse.metrics import Figures, exposition, gather
from shardfs.fuse.targets import default_target, require_mount

_LATENCY_WIDTHS: Final = (14, -12, -12, -12, -12)
_SHOWN_APART: Final = frozenset({"latencies", "requests"})


@examples(
    {
        "shardfs stat /srv/data": "counts and latencies",
        "shardfs stat /srv/data --json": "for programs",
        "shardfs stat /srv/data --prometheus >shardfs.prom": "for a node exporter's text files",
    }
)
@click.command()
@click.argument("mountpoint", metavar="[MOUNTPOINT]", type=PATH, required=False)
@click.option("--prometheus", is_flag=True, help="Print metrics in Prometheus' text format.")
@json_option
def stat(mountpoint: str | None, prometheus: bool, as_json: bool) -> None:
    """Print what the mount at MOUNTPOINT has counted since it was made.

    Durations of requests are the server's: from when it begins with a request to when its answer
    is ready. They are counted by powers of two, so a median is right within a factor of two.

    Without an argument: of the mount that the current directory is in, or the only one there is.
    """
    if prometheus and as_json:
        raise click.UsageError("--prometheus and --json exclude each other")
    name = mountpoint if mountpoint is not None else default_target()
    if prometheus:
        click.echo(exposition(trio.run(partial(_ask_all, name))), nl=False)
        return
    figures = trio.run(partial(_ask, name))
    if as_json:
        print_json(figures)
        return
    print_facts(
        (name, figure_text(name, value))
        for name, value in figures.items()
        if name not in _SHOWN_APART
    )
    print_row(("REQUEST", "COUNT", "MEAN US", "P50 US", "P99 US", ""), _LATENCY_WIDTHS)
    for cells in _latency_rows(figures["latencies"]):
        print_row(cells, _LATENCY_WIDTHS)


async def _ask(mountpoint: str) -> dict[str, Any]:
    async with connect(require_mount(mountpoint)) as client:
        return await client.answer({"request": "stat"})


async def _ask_all(mountpoint: str) -> Figures:
    async with connect(require_mount(mountpoint)) as client:
        return await gather(client)


def _latency_rows(latencies: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, each in sorted(latencies.items(), key=lambda item: -item[1]["count"]):
        mean = 1e6 * each["seconds"] / max(each["count"], 1)
        times = (f"{value:,.1f}" for value in (mean, each["p50_us"], each["p99_us"]))
        yield (name, f"{each['count']:,}", *times, "")


def figure_text(name: str, value: Any) -> str:
    """A figure for people: a number, several, or one for each of several things."""
    if isinstance(value, dict):
        return ", ".join(_part_text(name, *item) for item in value.items()) or "-"
    if name.endswith("_bytes"):
        return size_text(value)
    if isinstance(value, list | tuple):
        return " ".join(str(each) for each in value) or "-"
    return str(value) or "-"


def _part_text(name: str, key: str, value: Any) -> str:
    """One of several things, whose unit stands in its own name or in that of all."""
    named = key if key.endswith("_bytes") else name
    return f"{key.removesuffix('_bytes')} {figure_text(named, value)}"
