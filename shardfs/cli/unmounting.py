"""Unmounting in order: returns when all is durable and the server has gone.

Role: finds the server, takes the mount away, waits for the server's end, and says how it was.
Shared by `shardfs umount` and the helper of umount(8).

Invariants:
    I1. Success means that the server ended in order: everything written is on the device, and
        the device can be used by others.

Not here: what the server does at its end (fuse/session.py).
"""

from __future__ import annotations

import os
import select

from shardfs.cli.errors import DamageError
from shardfs.cli.progress import SHOWN_AFTER_S, progress
from shardfs.errors import UsageError
from shardfs.fuse.control import read_ending, server_pid
from shardfs.fuse.mounts import MountEntry, is_stale, unmount


def unmount_and_wait(entry: MountEntry) -> None:
    """Take a mount away and wait for its server.

    Raises:
        UsageError: it is busy, or this user may not.
        DamageError: it is unmounted, but its end was not in order.
    """
    mountpoint = entry.mountpoint
    pid = server_pid(entry)
    descriptor = _open_process(pid)
    try:
        _take_away(entry, pid)
        if pid is None:
            raise DamageError(
                f"{mountpoint} is unmounted, but its server had gone or cannot be reached; if it "
                "was killed, what was not synced may be lost"
            )
        if descriptor is not None:
            with progress("writing what is left") as bar:
                while not select.select([descriptor], [], [], SHOWN_AFTER_S)[0]:
                    bar.show(0)
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


def _take_away(entry: MountEntry, pid: int | None) -> None:
    """Unmount; a mount whose server has gone also when files there are open: they are lost."""
    try:
        unmount(entry.mountpoint)
    except UsageError:
        if pid is not None or not _is_dead(entry):
            raise
        unmount(entry.mountpoint, lazily=True)


def _is_dead(entry: MountEntry) -> bool:
    try:
        return is_stale(entry)
    except OSError:
        return False  # neither dead nor well: the user shall decide


def _open_process(pid: int | None) -> int | None:
    """A descriptor that becomes readable when the process ends; None if it has."""
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
