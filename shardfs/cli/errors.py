"""What an exception means to the user: one line and an exit status.

Role: the only map from exceptions to exit statuses, and from exceptions to text.

Invariants:
    I1. Whatever is raised, the user sees exactly one line, "shardfs: ...", and no traceback;
        SHARDFS_DEBUG=1 or -v adds the traceback of an unexpected exception, above that line.
    I2. 2 when the request was wrong and nothing is broken; 1 when something is.

Not here: what the file system answers to applications (fuse/errnos.py).
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Final

import click

from shardfs.errors import (
    CorruptionError,
    DeviceBusyError,
    DeviceTooSmallError,
    FileError,
    IncompatibleError,
    LimitError,
    NotShardfsError,
    ReadOnlyError,
    RemoteError,
    ShardfsError,
    UsageError,
)

SUCCESS: Final = 0
FINDING: Final = 1
MISUSE: Final = 2
INTERRUPTED: Final = 130

_MISUSE: Final[tuple[type[ShardfsError], ...]] = (
    DeviceBusyError,
    DeviceTooSmallError,
    FileError,
    IncompatibleError,
    LimitError,
    NotShardfsError,
    ReadOnlyError,
    UsageError,
)
_MISUSE_NAMES: Final = frozenset(kind.__name__ for kind in _MISUSE)


class DamageError(ShardfsError):
    """A command ends with status 1 for a reason that it says itself."""


def root_cause(error: BaseException) -> BaseException:
    """The exception that started it: groups, which trio's nurseries make, are opened.

    Of several, damage comes first, and something unexpected before everything else.
    """
    leaves = _leaves(error)
    unexpected = [leaf for leaf in leaves if not is_expected(leaf)]
    damage = [leaf for leaf in leaves if isinstance(leaf, CorruptionError)]
    return (unexpected or damage or leaves)[0]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def is_expected(error: BaseException) -> bool:
    """An error that shardfs or click raises on purpose, or that comes from the user's system."""
    return isinstance(error, ShardfsError | click.ClickException | OSError | KeyboardInterrupt)


def exit_status(error: BaseException) -> int:
    """The exit status for an exception; groups are opened first (I2)."""
    cause = root_cause(error)
    if isinstance(cause, click.ClickException):
        return MISUSE
    if isinstance(cause, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(cause, RemoteError):
        return MISUSE if cause.kind in _MISUSE_NAMES else FINDING
    return MISUSE if isinstance(cause, _MISUSE) else FINDING


def describe(error: BaseException) -> str:
    """The exception as one line for the user, without the leading "shardfs: "."""
    cause = root_cause(error)
    if isinstance(cause, click.ClickException):
        text = cause.format_message()
        if isinstance(cause, click.UsageError):
            command = cause.ctx.command_path if cause.ctx is not None else "shardfs"
            text = f"{text.rstrip('.')}; see: {command} --help"
    elif isinstance(cause, KeyboardInterrupt):
        text = "interrupted"
    elif isinstance(cause, ShardfsError):
        text = str(cause)
    elif isinstance(cause, OSError):
        text = f"{cause.strerror or cause}"
        if cause.filename is not None:
            text = f"{os.fsdecode(cause.filename)}: {text}"
        if cause.errno == errno.ENOTCONN:
            text += " (the server of that mount has gone; take it away with: shardfs umount)"
    else:
        text = f"unexpected {type(cause).__name__}: {cause}; please report it (-v shows where)"
    return " ".join(text.split())


def report(error: BaseException, *, verbose: bool) -> int:
    """Print an exception on standard error; its exit status."""
    if not is_expected(root_cause(error)) and (verbose or os.environ.get("SHARDFS_DEBUG")):
        traceback.print_exception(error)
    click.echo(f"shardfs: {describe(error)}", err=True)
    sys.stderr.flush()
    return exit_status(error)
