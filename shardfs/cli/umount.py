"""The `shardfs umount` command.

Role: one mount point, unmounted in order; or, with --lazy, cut off.

Not here: how (cli/unmounting.py).
"""

from __future__ import annotations

import click

from shardfs.cli.examples import examples
from shardfs.cli.options import PATH
from shardfs.cli.unmounting import unmount_and_wait
from shardfs.fuse.mounts import unmount
from shardfs.fuse.targets import require_mount


@examples(
    {
        "shardfs umount /srv/data": "returns when all is on the device",
        "shardfs umount --lazy /srv/data": "although it is in use",
    }
)
@click.command()
@click.argument("mountpoint", type=PATH)
@click.option(
    "-l",
    "--lazy",
    "lazily",
    is_flag=True,
    help="Take the mount away although it is in use; its server goes on until files are closed.",
)
def umount(mountpoint: str, lazily: bool) -> None:
    """Unmount the shardfs at MOUNTPOINT; when this returns, everything is safe on the device."""
    entry = require_mount(mountpoint)
    if lazily:
        unmount(entry.mountpoint, lazily=True)
    else:
        unmount_and_wait(entry)
