"""The `shardfs umount` command: returns when all is durable and the server has gone.

Role: finds the server, takes the mount away, waits for the server's end, and says how it was.

Invariants:
    I1. Success means that the server ended in order: everything written is on the device, and
        the device can be used by others.

Not here: what the server does at its end (fuse/session.py).
"""

from __future__ import annotations

import os
import select

import click

from shardfs.cli.errors import DamageError
from shardfs.cli.options import PATH
from shardfs.fuse.control import read_ending, server_pid
from shardfs.fuse.mounts import unmount
from shardfs.fuse.targets import require_mount


@click.command()
@click.argument("mountpoint", type=PATH)
def umount(mountpoint: str) -> None:
    """Unmount the shardfs at MOUNTPOINT; when this returns, everything is safe on the device."""
    entry = require_mount(mountpoint)
    pid = server_pid(entry)
    descriptor = _open_process(pid)
    try:
        unmount(entry.mountpoint)
        if pid is None:
            raise DamageError(
                f"{mountpoint} is unmounted, but its server had gone or cannot be reached; if it "
                "was killed, what was not synced may be lost"
            )
        if descriptor is not None:
            select.select([descriptor], [], [])
    finally:
        if descriptor is not None:
            os.close(descriptor)
    ending = read_ending(entry, pid)
    if ending is None:
        raise DamageError(
            f"the server of {mountpoint} ended without saying how; the newest changes may be lost"
        )
    status, message = ending
    if status != 0:
        raise DamageError(f"{mountpoint} is unmounted, but not in order: {message}")


def _open_process(pid: int | None) -> int | None:
    """A descriptor that becomes readable when the process ends; None if it has."""
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
