"""What is checked and settled before a device is mounted: mount point, log, recording.

Role: shared by `shardfs mount` and the helper of mount(8), so both refuse alike.

Not here: the process that serves (cli/serving.py).
"""

from __future__ import annotations

import os

import click

from shardfs.cli.logs import JOURNAL
from shardfs.cli.serving import Server
from shardfs.errors import UsageError
from shardfs.fuse.mount_options import MountOptions, Wishes
from shardfs.fuse.mounts import (
    prepare_mountpoint,
    require_fuse,
    require_rights,
    take_away_stale_mounts,
)
from shardfs.fuse.runtime import log_name, runtime_directory


def prepare(device: str, mountpoint: str, wishes: Wishes, record_path: str | None = None) -> Server:
    """What is to be served, after everything that can be checked before the device is opened.

    Raises:
        UsageError: it cannot be mounted there; says why and what to do.
    """
    if not os.path.lexists(device):
        raise UsageError(f"there is no {device}; make it with: shardfs mkfs {device} --size 1G")
    require_fuse()
    for stale in take_away_stale_mounts(device):
        click.echo(f"shardfs: note: took away {stale}, whose server had gone", err=True)
    place = prepare_mountpoint(mountpoint)
    require_rights(place, allow_other=bool(wishes.options.allow_other))
    recording = _recording_place(record_path, place, wishes.options) if record_path else ""
    return Server(os.path.realpath(device), place, wishes.options, recording)


def chosen_log(wished: str, mountpoint: str) -> str:
    """Where a background process logs: a file's absolute path, or JOURNAL.

    Args:
        wished: by the user; empty: as always.
    """
    if wished == JOURNAL:
        return JOURNAL
    return os.path.abspath(wished) if wished else str(runtime_directory() / log_name(mountpoint))


def _recording_place(path: str, mountpoint: str, options: MountOptions) -> str:
    """Where a recording goes, as an absolute path.

    Raises:
        UsageError: there cannot be one, or not there.
    """
    if options.read_only:
        raise UsageError("--record: a read-only mount writes nothing that could be recorded")
    absolute = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
    if os.path.commonpath([absolute, mountpoint]) == mountpoint:
        raise UsageError(f"--record: {path} would lie on the mount that it records")
    return absolute
