"""The `shardfs scrub` commands: begin, watch and pause the verification of a mount's data.

Role: asks the mount, and prints.

Not here: scrubbing (fuse/scrub.py), unmounted devices (`shardfs fsck --data`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, SIZE, json_option
from shardfs.cli.output import print_facts, print_json, print_line, printable, size_text, time_text
from shardfs.fuse.control import connect
from shardfs.fuse.targets import default_target, require_mount


@examples({"shardfs scrub start /srv/data": "verify all data", "shardfs scrub status": "how far"})
@click.group(short_help="Verify the data of a mount in the background.")
def scrub() -> None:
    """Verify all of a mount, data and tree, in the background, and name what has rotted.

    It is slow on purpose, gives way to whoever uses the mount, and goes on after a remount.
    """


@examples(
    {
        "shardfs scrub start /srv/data": "begin, or go on",
        "shardfs scrub start /srv/data --rate 16M": "no faster than 16 MiB/s",
    }
)
@scrub.command("start")
@click.argument("mountpoint", type=PATH, required=False)
@click.option("--rate", type=SIZE, help="Bytes a second at most; 64M unless it was set before.")
@json_option
def start_scrub(mountpoint: str | None, rate: int | None, as_json: bool) -> int:
    """Begin to verify all data, or go on where it was paused."""
    return _say(_ask(mountpoint, {"request": "scrub-start", "rate": rate}), as_json)


@examples({"shardfs scrub status /srv/data": "how far, and what was found"})
@scrub.command("status")
@click.argument("mountpoint", type=PATH, required=False)
@json_option
def scrub_status(mountpoint: str | None, as_json: bool) -> int:
    """Say how far it is, and which files have rotted. Exit status 1 if any has."""
    return _say(_ask(mountpoint, {"request": "scrub-status"}), as_json)


@examples({"shardfs scrub pause /srv/data": "until it is started again"})
@scrub.command("pause")
@click.argument("mountpoint", type=PATH, required=False)
@json_option
def pause_scrub(mountpoint: str | None, as_json: bool) -> int:
    """Stop for now; `shardfs scrub start` goes on from there, also after a remount."""
    return _say(_ask(mountpoint, {"request": "scrub-pause"}), as_json)


def _ask(mountpoint: str | None, request: dict[str, Any]) -> dict[str, Any]:
    entry = require_mount(mountpoint if mountpoint is not None else default_target())

    async def ask() -> dict[str, Any]:
        async with connect(entry) as client:
            return await client.answer(request)

    return trio.run(partial(ask))


def _say(status: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print_json(status)
        return _status(status)
    for each in status["tree_found"]:
        place = f"{each['what']} at extent {each['extent']} byte {each['offset']}"
        print_line(printable(f"{place} is damaged: {each['files']}; {each['error']}"))
    for each in status["found"]:
        name = each["path"] or f"inode {each['ino']}"
        last = each["start"] + each["length"] - 1
        click.echo(printable(f"{name} bytes {each['start']} to {last} are damaged"))
    share = 100 * status["verified_bytes"] // max(1, status["total_bytes"])
    lines = [
        ("state", status["state"]),
        ("verified", f"{size_text(status['verified_bytes'])} ({share} %)"),
        ("tree", f"{size_text(status['tree_bytes'])}, {status['tree_damaged']} parts damaged"),
        ("damaged", size_text(status["damaged_bytes"])),
        ("rate", f"at most {size_text(status['rate'])}/s"),
    ]
    if status["started_ns"]:
        lines.append(("started", time_text(status["started_ns"])))
    if status["ended_ns"]:
        lines.append(("ended", time_text(status["ended_ns"])))
    if status["left_s"] is not None:
        lines.append(("left", f"{status['left_s']:.0f} s at least"))
    print_facts(lines)
    return _status(status)


def _status(answer: dict[str, Any]) -> int:
    return FINDING if answer["damaged_bytes"] or answer["tree_damaged"] else SUCCESS
