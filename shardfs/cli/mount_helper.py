"""mount.shardfs and umount.shardfs: what mount(8) and umount(8) call for a shardfs.

Role: the command lines and exit statuses that those two document for their helpers, around the
same code as `shardfs mount` and `shardfs umount`. /sbin/mount.fuse3, which serves `mount -t
fuse.shardfs` and lines of that type in fstab, calls the shardfs command itself as a helper
(`is_helper_call` of cli/main.py tells that from a command).

Invariants:
    I1. 0 success; 1 wrong call or no permission; 2 the system lacks something; 4 a bug;
        8 interrupted; 32 the mount (or its end) failed. An error is one line.
    I2. A mount that root asks for allows what mount(8) allows by default: suid, dev and exec,
        unless the options say otherwise.

Not here: what the options mean (fuse/mount_options.py).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import click
import trio

from shardfs.cli.errors import INTERRUPTED, SUCCESS, describe, exit_status, is_expected, root_cause
from shardfs.cli.logs import JOURNAL, is_begun_by_systemd, log_to_standard_error
from shardfs.cli.mount_preparation import chosen_log, prepare
from shardfs.cli.options import PATH
from shardfs.cli.serving import run_in_background
from shardfs.cli.unmounting import unmount_and_wait
from shardfs.cli.versions import version_option
from shardfs.errors import UsageError
from shardfs.fuse.mount_options import Wishes, read_options
from shardfs.fuse.mounts import unmount
from shardfs.fuse.remounting import remount
from shardfs.fuse.targets import require_mount

WRONG_CALL: Final = 1
SYSTEM_LACKS: Final = 2
BUG: Final = 4
INTERRUPTED_BY_USER: Final = 8
FAILED: Final = 32

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _without_effect(*names: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """An option that mount(8) may pass on, and that changes nothing here."""
    return click.option(*names, expose_value=False, help="Without effect.", **attributes)


_NAMESPACE: Final = click.option("-N", "namespace", help="Not supported.")
_KIND: Final = _without_effect("-t", "kind")


@click.command(context_settings=_SETTINGS)
@click.argument("device", type=PATH)
@click.argument("mountpoint", type=PATH)
@click.option("-o", "options", multiple=True, help="Mount options, as in: shardfs mount -o.")
@click.option("-s", "sloppy", is_flag=True, help="Pass over unknown options.")
@click.option("-f", "fake", is_flag=True, help="Only check; mount nothing.")
@click.option("-v", "verbose", is_flag=True, help="Say more.")
@_without_effect("-n", "without_table", is_flag=True)
@_KIND
@_NAMESPACE
@version_option("-V", "--version")
def mount_device(
    device: str,
    mountpoint: str,
    options: tuple[str, ...],
    sloppy: bool,
    fake: bool,
    verbose: bool,
    namespace: str | None,
) -> int:
    """Mount the shardfs on DEVICE at the empty directory MOUNTPOINT, for mount(8)."""
    wishes = _parse(options, sloppy, namespace)
    if wishes.remount:
        if not fake:
            trio.run(remount, require_mount(mountpoint), options)
        return SUCCESS
    server = prepare(device, mountpoint, wishes)
    if fake:
        return SUCCESS
    wished = wishes.log or (JOURNAL if is_begun_by_systemd() else "")
    level = logging.DEBUG if verbose else logging.INFO
    return run_in_background(server, chosen_log(wished, server.mountpoint), level)


def _parse(options: tuple[str, ...], sloppy: bool, namespace: str | None) -> Wishes:
    """The options, with the defaults of mount(8) (I2)."""
    if namespace is not None:
        raise click.UsageError("-N: mounting into another namespace is not supported; use nsenter")
    try:
        wishes = read_options(options, sloppy=sloppy)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    if os.geteuid() != 0:
        return wishes
    wished = wishes.options
    allowed = replace(
        wished,
        suid=wished.suid is not False,
        dev=wished.dev is not False,
        exec=wished.exec is not False,
    )
    return replace(wishes, options=allowed)


@click.command(context_settings=_SETTINGS)
@click.argument("mountpoint", type=PATH)
@click.option("-l", "lazily", is_flag=True, help="Now, although it is in use; do not wait.")
@_without_effect("-f", "force", is_flag=True)
@_without_effect("-n", "without_table", is_flag=True)
@_without_effect("-r", "to_read_only", is_flag=True)
@_without_effect("-v", "verbose", is_flag=True)
@_KIND
@_NAMESPACE
def unmount_mountpoint(mountpoint: str, lazily: bool, namespace: str | None) -> int:
    """Unmount the shardfs at MOUNTPOINT, for umount(8); returns when everything is durable."""
    if namespace is not None:
        raise click.UsageError("-N: another namespace is not supported; use nsenter")
    entry = require_mount(mountpoint)
    if lazily:
        unmount(entry.mountpoint, lazily=True)
    else:
        unmount_and_wait(entry)
    return SUCCESS


def main_mount() -> None:
    """Entry point of mount.shardfs."""
    sys.exit(run_helper(mount_device, "mount.shardfs", sys.argv[1:]))


def main_umount() -> None:
    """Entry point of umount.shardfs."""
    sys.exit(run_helper(unmount_mountpoint, "umount.shardfs", sys.argv[1:]))


def run_helper(command: click.Command, name: str, arguments: Sequence[str]) -> int:
    """Run a helper's command line; its exit status. Never raises."""
    log_to_standard_error(logging.WARNING)
    try:
        with command.make_context(name, list(arguments)) as context:
            outcome = command.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except BaseException as error:  # the end of the process: every error becomes a line
        click.echo(f"{name}: {describe(error)}", err=True)
        return helper_status(error)
    return _status_of_mount(outcome) if isinstance(outcome, int) else SUCCESS


def helper_status(error: BaseException) -> int:
    """The status that mount(8) documents for an error (I1)."""
    cause = root_cause(error)
    if isinstance(cause, click.ClickException | PermissionError):
        return WRONG_CALL
    if isinstance(cause, OSError):
        return SYSTEM_LACKS
    if not is_expected(cause):
        return BUG
    return _status_of_mount(exit_status(cause))


def _status_of_mount(status: int) -> int:
    """The same for the exit status of a shardfs command."""
    if status == INTERRUPTED:
        return INTERRUPTED_BY_USER
    return SUCCESS if status == SUCCESS else FAILED
