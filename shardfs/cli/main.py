"""The `shardfs` command: the group, logging, and the one place where errors end.

Role: assembles the commands; turns whatever they raise into one line and an exit status.

Not here: what the commands do, one module each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

import click

from shardfs.cli.commands import VARIABLE, LazyGroup
from shardfs.cli.errors import SUCCESS, report, root_cause
from shardfs.cli.examples import examples
from shardfs.cli.logs import LEVELS, level_number, log_to_standard_error
from shardfs.cli.versions import version_option

_VERBOSE = (logging.INFO, logging.DEBUG)


@examples(
    {
        "shardfs mkfs disk.img --size 1G": "a store in a new image file",
        "shardfs mount disk.img mnt": "a directory to copy files into",
        "shardfs umount mnt": "everything is safe on the disk",
    }
)
@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("-v", "--verbose", count=True, help="Say more; twice for everything.")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
@click.option("--log-level", type=click.Choice(LEVELS), help="Log from this level on.")
@version_option("--version")
@click.pass_context
def group(context: click.Context, verbose: int, quiet: bool, log_level: str | None) -> None:
    """A disk as a directory: files kept as shards in a crash-consistent store.

    Exit status: 0 success, 1 a finding or damage, 2 misuse.
    """
    level = None
    if log_level is not None:
        level = level_number(log_level)
    elif quiet:
        level = logging.ERROR
    elif verbose:
        level = _VERBOSE[min(verbose, len(_VERBOSE)) - 1]
    context.obj = level  # None: as the command sees fit
    log_to_standard_error(logging.WARNING if level is None else level)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run one command line and exit."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if instruction := os.environ.get(VARIABLE):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(group, {}, "shardfs", VARIABLE, instruction))
    if is_helper_call(arguments):
        from shardfs.cli.mount_helper import mount_device, run_helper

        sys.exit(run_helper(mount_device, "shardfs", arguments))
    sys.exit(run(arguments))


def is_helper_call(arguments: Sequence[str]) -> bool:
    """Called as /sbin/mount.fuse3 does: with a device's path, not a command."""
    return len(arguments) >= 2 and "/" in arguments[0] and not arguments[0].startswith("-")


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit status. Never raises."""
    try:
        # Not click's own main: it has its own mind about broken pipes.
        with group.make_context("shardfs", list(arguments)) as context:
            outcome = group.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except BaseException as error:  # the end of the process: every error becomes a line
        if isinstance(root_cause(error), BrokenPipeError):
            return _end_quietly()
        return report(error, verbose=any(each.startswith("-v") for each in arguments))
    return outcome if isinstance(outcome, int) else SUCCESS


def _end_quietly() -> int:
    """Whoever read the output has read enough; the rest has nowhere to go."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return SUCCESS
