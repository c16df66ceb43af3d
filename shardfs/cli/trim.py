"""The `shardfs trim` command: tells a device of everything that is free.

Role: one request, printed.

Not here: what it does (engine/resizing.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, size_text
from shardfs.cli.progress import waiting
from shardfs.fuse.targets import open_target


@examples(
    {
        "shardfs trim /srv/data": "what fstrim(8) does elsewhere",
    }
)
@click.command()
@click.argument("target", type=PATH)
@json_option
def trim(target: str, as_json: bool) -> None:
    """Discard all free space of TARGET, a block device, an image file or a mount point.

    A block device is told by BLKDISCARD; an image file gets holes. The bytes that are printed are
    those that are free, whether or not the device still held something there.
    """
    facts = trio.run(partial(_trim, target))
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{target}: {size_text(facts['discarded_bytes'])} discarded")


async def _trim(target: str) -> dict[str, Any]:
    async with open_target(target, change=True) as opened, waiting("discarding what is free"):
        return await opened.conversation.answer({"request": "trim"})
