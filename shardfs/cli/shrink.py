"""The `shardfs shrink` command: a store gives up the end of its device.

Role: asks for one step after the other, shows how far it has come, prints the result.

Invariants:
    I1. Interrupting it, or killing it, leaves the store at its old size or at the new one.

Not here: what it does (engine/shrinking.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from shardfs.cli.examples import examples
from shardfs.cli.interrupting import run_until_interrupted
from shardfs.cli.options import PATH, SIZE, json_option
from shardfs.cli.output import print_resized, size_text
from shardfs.cli.progress import progress
from shardfs.fuse.targets import open_target


@examples(
    {
        "shardfs shrink /srv/data --size 100G": "while it is in use",
    }
)
@click.command()
@click.argument("target", type=PATH)
@click.option("--size", type=SIZE, required=True, help="The new size.")
@json_option
def shrink(target: str, size: int, as_json: bool) -> None:
    """Make the store on TARGET --size bytes large, moving what lies behind that.

    TARGET is a block device or image file, or the mount point of a mount, which goes on meanwhile.
    An image file is cut off at its new end; a block device can be made smaller afterwards. Nothing
    is changed if what is stored would not fit. When it is interrupted, the store keeps its size.
    """
    print_resized(target, run_until_interrupted(partial(_shrink, target, size)), as_json=as_json)


async def _shrink(target: str, size: int) -> dict[str, Any]:
    async with open_target(target, change=True) as opened:
        begun = await opened.conversation.answer({"request": "shrink-begin", "size": size})
        total = begun["total_bytes"]
        with progress("shrinking") as bar:
            while True:
                answer = await opened.conversation.answer({"request": "shrink-more"})
                left = answer["left_bytes"]
                text = f"moving {size_text(total)}: {size_text(left)} left"
                bar.show(total - left, total, text)
                if answer["result"] is not None:
                    return {**answer["result"], "moved_bytes": answer["total_bytes"]}
