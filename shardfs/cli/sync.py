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
from shardfs.fuse.targets import open_target, require_mount


@examples(
    {
        "cp -a photos /srv/data && shardfs sync /srv/data": "copy, then make it durable",
        "shardfs sync --wait /srv/data/photos": "until all below a directory is",
    }
)
@click.command()
@click.argument("path", metavar="MOUNTPOINT|PATH", type=PATH)
@click.option("--wait", is_flag=True, help="PATH is a file or directory in a mount.")
def sync(path: str, wait: bool) -> None:
    """Return when everything written to MOUNTPOINT before is durable.

    With --wait: when the file PATH, or all below the directory PATH, is. Exit status 1 if it
    cannot be made durable.
    """
    trio.run(partial(_sync_path if wait else _sync, path))


async def _sync(mountpoint: str) -> None:
    async with connect(require_mount(mountpoint)) as client, waiting("making everything durable"):
        await client.answer({"request": "sync"})


async def _sync_path(name: str) -> None:
    async with open_target(name) as target, waiting("making it durable"):
        await target.conversation.answer({"request": "sync-path", "path": target.inner_path})
