"""The `shardfs info` command: what a store is, how full, and how it is.

Role: one request, printed.

Not here: where the figures come from (fuse/inspection.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_facts, print_json, printable, size_text, time_text
from shardfs.fuse.targets import open_target


@examples(
    {
        "shardfs info /dev/sdb1": "which store it is",
        "shardfs info /srv/data --json": "a mount, for programs",
    }
)
@click.command()
@click.argument("target", metavar="DEVICE|MOUNTPOINT", type=PATH)
@json_option
def info(target: str, as_json: bool) -> int:
    """Say what is on DEVICE, or mounted at MOUNTPOINT: identity, geometry, space, health."""
    facts = trio.run(partial(_ask, target))
    if as_json:
        print_json(facts)
    else:
        print_facts(_lines(facts))
    return FINDING if facts["health"] in ("damaged", "failed") else SUCCESS


async def _ask(name: str) -> dict[str, Any]:
    async with open_target(name) as target:
        return await target.conversation.answer({"request": "info"})


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    space, features = facts["space"], facts["features"]
    if facts["mountpoint"] is not None:
        state = f"mounted at {printable(facts['mountpoint'])}"
    else:
        state = "closed in order" if facts["clean"] else "not closed in order; mounts all the same"
    health = facts["health"] + (f": {facts['reason']}" if facts["reason"] else "")
    lines = [
        ("device", printable(facts["device"])),
        ("uuid", facts["uuid"]),
        ("label", printable(facts["label"]) or "-"),
        ("state", state),
        ("health", health),
        ("created", time_text(facts["created_ns"])),
        (
            "format",
            f"{facts['format_version']}, features {features['compatible']:#x} compatible, "
            f"{features['read_only_compatible']:#x} read-only compatible, "
            f"{features['incompatible']:#x} incompatible",
        ),
        (
            "geometry",
            f"{size_text(facts['device_bytes'])} in {facts['extent_count']} extents of "
            f"{size_text(facts['extent_bytes'])}, sectors of {facts['sector_bytes']} bytes, "
            f"chunks of up to {size_text(facts['chunk_bytes_max'])}",
        ),
        (
            "space",
            f"{size_text(space['free_bytes'])} free of {size_text(space['total_bytes'])}, "
            f"{size_text(space['live_bytes'])} live, {size_text(space['garbage_bytes'])} garbage",
        ),
    ]
    return lines + [("note", note) for note in facts["notes"]]
