"""The `shardfs lsm` command: the shape of the tree of metadata, and what it costs.

Role: one request, printed.

Not here: the figures (engine/inventory.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import click
import trio

from shardfs.cli.examples import examples
from shardfs.cli.looking import look_at
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_facts, print_json, print_row, printable, size_text
from shardfs.fuse.targets import default_target

_LEVEL_WIDTHS: Final = (-5, -5, -10, 10)
_RUN_WIDTHS: Final = (-5, -5, -4, -6, -8, -5, -10, 40)


@examples(
    {
        "shardfs lsm disk.img": "of an image",
        "shardfs lsm /srv/data --json": "of a mount, for programs",
    }
)
@click.command()
@click.argument("target", metavar="[DEVICE|MOUNTPOINT]", type=PATH, required=False)
@json_option
def lsm(target: str | None, as_json: bool) -> None:
    """Show the LSM tree: levels, runs with their key ranges, debt, and amplification.

    Amplification: read, runs that a look-up may have to ask; space, bytes of the tree for each that
    is live, estimated; write, bytes of runs written for each byte of the delta log, since the mount
    was made.
    """
    figures = trio.run(partial(_ask, target if target is not None else default_target()))
    if as_json:
        print_json(figures)
    else:
        _print(figures)


async def _ask(name: str) -> dict[str, Any]:
    async with look_at(name) as target:
        return await target.conversation.answer({"request": "lsm"})


def _print(figures: dict[str, Any]) -> None:
    print_facts(_facts(figures))
    if not figures["runs"]:
        return
    print_row(("LEVEL", "RUNS", "ENTRIES", "BYTES"), _LEVEL_WIDTHS)
    for level in figures["levels"]:
        cells = (level["level"], level["runs"], level["entries"], size_text(level["run_bytes"]))
        print_row(tuple(map(str, cells)), _LEVEL_WIDTHS)
    header = ("RUN", "LEVEL", "SEGS", "BLOCKS", "ENTRIES", "TOMBS", "BYTES", "KEYS")
    print_row(header, _RUN_WIDTHS)
    for run in reversed(figures["runs"]):
        counts = (run[key] for key in ("run_id", "level", "segments", "blocks", "entries"))
        keys = f"{run['first_key']['text']} to {run['last_key']['text']}"
        cells = (*counts, run["tombstones"], size_text(run["run_bytes"]), printable(keys))
        print_row(tuple(map(str, cells)), _RUN_WIDTHS)


def _facts(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory = f"{figures['memtable_entries']} entries, {size_text(figures['memtable_bytes'])}"
    if figures["frozen_entries"]:
        memory += f"; {figures['frozen_entries']} being written"
    yield "memory", memory
    first, last = figures["checkpoint"] + 1, figures["durable_delta"]
    if first <= last:
        yield "delta log", f"{size_text(figures['log_bytes'])}: deltas {first} to {last}"
    else:
        yield "delta log", f"nothing behind delta {first - 1}, which runs hold"
    size, garbage = size_text(figures["tree_bytes"]), size_text(figures["garbage_bytes"])
    yield "runs", f"{len(figures['runs'])}, {size}, of which about {garbage} are garbage"
    debt = f"checkpoint {_percent(figures['checkpoint_debt'])}, "
    debt += f"merging {_percent(figures['merge_debt'])}"
    yield "debt", debt + (", a merge is under way" if figures["is_merging"] else "")
    costs = figures["amplification"]
    yield (
        "amplification",
        f"read {costs['read']} runs, space {_factor(costs['space'])}, "
        f"write {_factor(costs['write'])}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
