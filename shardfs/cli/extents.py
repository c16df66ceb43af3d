"""The `shardfs extents` command: a map of the device.

Role: asks a device or a mount, and draws: in the terminal, as a table, as an SVG, or as JSON.

Invariants:
    I1. A file that exists is not overwritten by --svg unless it is an SVG that this command made.

Not here: drawing (extent_map.py, extent_svg.py), one extent in detail (cli/why.py).
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from shardfs.cli.examples import examples
from shardfs.cli.extent_kinds import kind_of
from shardfs.cli.extent_map import map_lines
from shardfs.cli.extent_svg import draw_svg
from shardfs.cli.looking import look_at
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, print_row, printable, size_text
from shardfs.cli.pages import rest_of
from shardfs.errors import UsageError
from shardfs.fuse.targets import default_target

_WIDTHS: Final = (-6, 6, 10, -10, -5, -10, -5, -7, 5)
_SVG_BEGINS: Final = "<svg xmlns="
_WIDTH_WITHOUT_TERMINAL: Final = 80


@examples(
    {
        "shardfs extents disk.img": "a map of an image",
        "shardfs extents /srv/data --svg map.svg": "of a mount, as a picture",
        "shardfs extents disk.img --table": "one line an extent",
    }
)
@click.command()
@click.argument("target", metavar="[DEVICE|MOUNTPOINT]", type=PATH, required=False)
@click.option("--table", is_flag=True, help="One line for each extent that is not free.")
@click.option("--svg", metavar="FILE", type=PATH, help="Draw the map into a new file.")
@click.option("--width", type=click.IntRange(24, 1000), help="Columns; default the terminal's.")
@json_option
def extents(
    target: str | None, table: bool, svg: str | None, width: int | None, as_json: bool
) -> None:
    """Draw a map of the extents: what kind each is, how much of it is live, and garbage.

    Kinds with their temperature: superblock, delta log, tree, hot, warm and cold data, free. Small
    letters are extents that are being written to; their write pointers stand below the map.
    """
    name = target if target is not None else default_target()
    device = trio.run(partial(_ask, name))
    if svg is not None:
        title = f"{printable(name)}: {device['extent_count']} extents of "
        title += size_text(device["extent_bytes"])
        _write_svg(svg, draw_svg(device["extents"], device["extent_bytes"], title))
    if as_json:
        print_json(device)
    elif table:
        _print_table(device)
    elif svg is None:
        _print_map(name, device, width)


async def _ask(name: str) -> dict[str, Any]:
    async with look_at(name) as target:
        device = await target.conversation.answer({"request": "extents-begin"})
        found = rest_of(target.conversation, "extents-more", "extents")
        return {**device, "extents": [each async for each in found]}


def _print_map(name: str, device: dict[str, Any], width: int | None) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=width, soft_wrap=True)
    columns = width or (console.width if console.is_terminal else _WIDTH_WITHOUT_TERMINAL)
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    extent_bytes = device["extent_bytes"]
    with console.capture() as drawn:  # click knows what to do when nobody reads on
        console.print(
            f"{printable(name)}: {size_text(device['device_bytes'])}, "
            f"{device['extent_count']} extents of {size_text(extent_bytes)}",
            markup=False,
        )
        for line in map_lines(device["extents"], extent_bytes, columns, unicode=unicode):
            line.rstrip()
            console.print(line)
    click.echo(drawn.get(), nl=False)


def _print_table(device: dict[str, Any]) -> None:
    size = device["extent_bytes"]
    header = ("EXTENT", "STATE", "KIND", "LIVE", "SHARE", "GARBAGE", "SHARE", "POINTER", "EPOCH")
    print_row(header, _WIDTHS)
    free = 0
    for extent in device["extents"]:
        if extent["state"] == "free":
            free += 1
            continue
        live, garbage = extent["live_bytes"], extent["garbage_bytes"]
        cells = (
            str(extent["extent"]),
            extent["state"] if extent["stream"] else "-",
            kind_of(extent).name,
            size_text(live),
            f"{100 * live / size:.0f} %",
            size_text(garbage),
            f"{100 * garbage / size:.0f} %",
            str(extent["write_pointer"]),
            str(extent["epoch"]),
        )
        print_row(cells, _WIDTHS)
    click.echo(f"and {free} free extents of {size_text(size)}")


def _write_svg(name: str, picture: str) -> None:
    path = Path(name)
    if path.exists() and not path.read_text("utf-8", "replace").startswith(_SVG_BEGINS):
        raise UsageError(f"{name} exists and is no SVG of this command; name another file")
    path.write_text(picture, encoding="utf-8")
