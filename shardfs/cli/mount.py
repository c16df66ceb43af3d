"""The `shardfs mount` command: serves a store at a directory, in the background or not.

Role: reads the command line, then serves or has a daemon serve; or changes a living mount.

Not here: checks before anything is opened (cli/mount_preparation.py), the process that serves
(cli/serving.py), what mount(8) calls (cli/mount_helper.py).
"""

from __future__ import annotations

import logging

import click
import trio

from shardfs.cli.errors import SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.mount_preparation import chosen_log, prepare
from shardfs.cli.options import PATH
from shardfs.cli.serving import run_in_background, say_notes
from shardfs.fuse.mount_options import KNOWN, read_options
from shardfs.fuse.remounting import remount
from shardfs.fuse.targets import require_mount


@examples(
    {
        "shardfs mount /dev/sdb1 /srv/data": "in the background",
        "shardfs mount disk.img mnt -o noatime,ro": "with options",
        "shardfs mount -f disk.img mnt": "stay, and log to the terminal",
    }
)
@click.command()
@click.argument("device", type=PATH)
@click.argument("mountpoint", type=PATH)
@click.option("-o", "options", multiple=True, help=f"Mount options: {KNOWN}.")
@click.option("-f", "--foreground", is_flag=True, help="Stay, and log to standard error.")
@click.option(
    "--log", "log_path", type=PATH, help="File for the background process's log, or: journal."
)
@click.option(
    "--record",
    "record_path",
    type=PATH,
    metavar="FILE",
    help="Write every request to the device into a new FILE, for: shardfs check crashes FILE.",
)
@click.pass_context
def mount(
    context: click.Context,
    device: str,
    mountpoint: str,
    options: tuple[str, ...],
    foreground: bool,
    log_path: str | None,
    record_path: str | None,
) -> int:
    """Mount the shardfs on DEVICE at the empty directory MOUNTPOINT.

    Returns when the mount answers. A device that is write-protected is mounted read-only. With
    -o remount the options of the mount at MOUNTPOINT are changed.
    """
    wishes = read_options(options)
    if wishes.remount:
        trio.run(remount, require_mount(mountpoint), options)
        return SUCCESS
    server = prepare(device, mountpoint, wishes, record_path)
    if foreground:
        return server.run(say_notes)
    log = chosen_log(log_path or wishes.log, server.mountpoint)
    return run_in_background(server, log, context.obj or logging.INFO)
