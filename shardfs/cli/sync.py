"""The `shardfs sync` command: makes everything written to a mount durable.

Role: one request; sync(2) does not reach a FUSE server, this does.

Not here: what it does (fuse/filesystem.py).
"""

from __future__ import annotations

from functools import partial

import click
import trio

from shardfs.cli.examples import examples
from shardfs.cli.options import PATH
from shardfs.cli.progress import waiting
from shardfs.fuse.control import connect
from shardfs.fuse.targets import require_mount


@examples(
    {
        "cp -a photos /srv/data && shardfs sync /srv/data": "copy, then make it durable",
    }
)
@click.command()
@click.argument("mountpoint", type=PATH)
def sync(mountpoint: str) -> None:
    """Return when everything written to MOUNTPOINT before is durable."""
    trio.run(partial(_sync, mountpoint))


async def _sync(mountpoint: str) -> None:
    async with connect(require_mount(mountpoint)) as client, waiting("making everything durable"):
        await client.answer({"request": "sync"})
