"""The `shardfs df` command: where every byte of a device is.

Role: one request, printed as a table with a bar.

Invariants:
    I1. The parts add up to the size of the device, in the JSON to the byte.

Not here: what the parts are (engine/stats.py, engine/figures.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import click
import trio

from shardfs.cli.examples import examples
from shardfs.cli.looking import look_at
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, print_line, printable, size_text
from shardfs.fuse.targets import default_target

_BAR_WIDTH: Final = 64
_MARKS: Final = "#=.~+x"


@examples(
    {
        "shardfs df": "of the mount that one is in",
        "shardfs df /srv/data --json": "for programs",
        "shardfs df disk.img": "of an image that is not mounted",
    }
)
@click.command()
@click.argument("target", metavar="[DEVICE|MOUNTPOINT]", type=PATH, required=False)
@json_option
def df(target: str | None, as_json: bool) -> None:
    """Say where the bytes of a store are: live data, garbage, free, metadata, reserved.

    Without an argument: of the mount that the current directory is in, or the only one there is.
    """
    answer = trio.run(partial(_ask, target if target is not None else default_target()))
    if as_json:
        print_json(answer)
    else:
        _print(answer)


async def _ask(name: str) -> dict[str, Any]:
    async with look_at(name) as target:
        return await target.conversation.answer({"request": "space"})


def _print(answer: dict[str, Any]) -> None:
    total, rows = answer["device_bytes"], _rows(answer["parts"], answer["extent_bytes"])
    where = f" at {printable(answer['mountpoint'])}" if answer["mountpoint"] else ", not mounted"
    print_line(f"{printable(answer['device'])}{where}: {size_text(total)}")
    click.echo(f"[{_bar([size for _, size, _ in rows], total)}]")
    for mark, (name, size, note) in zip(_MARKS, rows, strict=True):
        share = 100 * size / total
        print_line(f"  {mark} {name:<10}{size_text(size):>11} {share:6.2f} %  {note}", indent=36)
    click.echo(f"{size_text(answer['available_bytes'])} can be written now: garbage and free")


def _rows(parts: dict[str, int], extent_bytes: int) -> list[tuple[str, int, str]]:
    """Name, bytes and a remark of each line."""
    metadata = ("index_bytes", "log_bytes")
    reserved = ("superblock_bytes", "index_reserve_bytes", "working_bytes", "outside_bytes")
    details = {name: size_text(parts[name]) for name in (*metadata, *reserved)}
    kept = (
        f"superblock {details['superblock_bytes']}, index {details['index_reserve_bytes']}, "
        f"reclamation {details['working_bytes']}"
    )
    if parts["outside_bytes"]:
        kept += f", behind the last extent {details['outside_bytes']}"
    if parts["outside_bytes"] >= extent_bytes:
        kept += " (shardfs grow takes it in)"
    return [
        ("live data", parts["live_bytes"], ""),
        ("garbage", parts["garbage_bytes"], "reclaimed when space is wanted, or by: shardfs gc"),
        ("free", parts["free_bytes"], ""),
        ("pending", parts["pending_bytes"], "set aside for what is buffered"),
        (
            "metadata",
            sum(parts[name] for name in metadata),
            f"tree {details['index_bytes']}, delta log {details['log_bytes']}",
        ),
        ("reserved", sum(parts[name] for name in reserved), kept),
    ]


def _bar(sizes: list[int], total: int) -> str:
    """A bar in which every part ends where its share of the device does."""
    bar, end = "", 0
    for mark, size in zip(_MARKS, sizes, strict=True):
        end += size
        bar += mark * (round(_BAR_WIDTH * end / total) - len(bar))
    return bar
