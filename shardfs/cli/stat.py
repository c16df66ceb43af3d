"""The `shardfs stat` command: the figures that a mount counts.

Role: one request, printed.

Not here: what is counted (engine/stats.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_facts, print_json, size_text
from shardfs.fuse.control import connect
from shardfs.fuse.targets import require_mount


@examples(
    {
        "shardfs stat /srv/data": "counts and latencies",
        "shardfs stat /srv/data --json": "for programs",
    }
)
@click.command()
@click.argument("mountpoint", type=PATH)
@json_option
def stat(mountpoint: str, as_json: bool) -> None:
    """Print what the mount at MOUNTPOINT has counted since it was made."""
    figures = trio.run(partial(_ask, mountpoint))
    if as_json:
        print_json(figures)
    else:
        print_facts((name, figure_text(name, value)) for name, value in figures.items())


async def _ask(mountpoint: str) -> dict[str, Any]:
    async with connect(require_mount(mountpoint)) as client:
        return await client.answer({"request": "stat"})


def figure_text(name: str, value: Any) -> str:
    """A figure for people: a number, several, or one for each of several things."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {figure_text(name, each)}" for key, each in value.items()) or "-"
    if name.endswith("_bytes"):
        return size_text(value)
    if isinstance(value, list | tuple):
        return " ".join(str(each) for each in value) or "-"
    return str(value) or "-"
