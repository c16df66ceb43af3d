"""The `shardfs grow` command: a store takes up more of its device.

Role: one request, printed.

Not here: what it does (engine/resizing.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from shardfs.cli.examples import examples
from shardfs.cli.interrupting import run_until_interrupted
from shardfs.cli.options import PATH, SIZE, json_option
from shardfs.cli.output import print_resized
from shardfs.cli.progress import waiting
from shardfs.fuse.targets import open_target


@examples(
    {
        "shardfs grow /srv/data": "take all of a device that became larger",
        "shardfs grow disk.img --size 4G": "lengthen an image file and use it",
    }
)
@click.command()
@click.argument("target", type=PATH)
@click.option("--size", type=SIZE, help="The new size; an image file is made that long first.")
@json_option
def grow(target: str, size: int | None, as_json: bool) -> None:
    """Let the store on TARGET use all of its device, or --size bytes of it.

    TARGET is a block device or image file, or the mount point of a mount, which goes on meanwhile.
    """
    print_resized(target, run_until_interrupted(partial(_grow, target, size)), as_json=as_json)


async def _grow(target: str, size: int | None) -> dict[str, Any]:
    async with open_target(target, change=True) as opened, waiting("growing"):
        return await opened.conversation.answer({"request": "grow", "size": size})
