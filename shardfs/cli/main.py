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
from click.shell_completion import shell_complete

from shardfs import __version__
from shardfs.cli.check import check
from shardfs.cli.completion import completion
from shardfs.cli.completion_scripts import VARIABLE
from shardfs.cli.cp_out import cp_out
from shardfs.cli.df import df
from shardfs.cli.doctor import doctor
from shardfs.cli.errors import SUCCESS, report, root_cause
from shardfs.cli.examples import examples
from shardfs.cli.extents import extents
from shardfs.cli.fsck import fsck
from shardfs.cli.gc import gc
from shardfs.cli.grow import grow
from shardfs.cli.info import info
from shardfs.cli.inspect import inspect
from shardfs.cli.install import install
from shardfs.cli.logs import LEVELS, level_number, log_to_standard_error
from shardfs.cli.lsm import lsm
from shardfs.cli.map import map_file
from shardfs.cli.mkfs import mkfs
from shardfs.cli.mount import mount
from shardfs.cli.mount_helper import is_helper_call, mount_device, run_helper
from shardfs.cli.pending import pending
from shardfs.cli.salvage import salvage
from shardfs.cli.scrub import scrub
from shardfs.cli.shards import shards
from shardfs.cli.shrink import shrink
from shardfs.cli.stat import stat
from shardfs.cli.sync import sync
from shardfs.cli.top import top
from shardfs.cli.trace import trace
from shardfs.cli.tree import tree
from shardfs.cli.trim import trim
from shardfs.cli.umount import umount
from shardfs.cli.undelete import undelete
from shardfs.cli.whereis import whereis
from shardfs.cli.why import why

_VERBOSE = (logging.INFO, logging.DEBUG)


@examples(
    {
        "shardfs mkfs disk.img --size 1G": "a store in a new image file",
        "shardfs mount disk.img mnt": "a directory to copy files into",
        "shardfs umount mnt": "everything is safe on the disk",
    }
)
@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("-v", "--verbose", count=True, help="Say more; twice for everything.")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
@click.option("--log-level", type=click.Choice(LEVELS), help="Log from this level on.")
@click.version_option(__version__, message="shardfs %(version)s")
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


for command in (
    *(mkfs, mount, umount, info, df, gc, why, shards, fsck, sync, stat, top, trace, doctor),
    *(grow, shrink, trim, check, install, completion, salvage, undelete, scrub),
    *(extents, map_file, whereis, lsm, inspect, tree, cp_out, pending),
):
    group.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run one command line and exit."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if instruction := os.environ.get(VARIABLE):
        sys.exit(shell_complete(group, {}, "shardfs", VARIABLE, instruction))
    if is_helper_call(arguments):
        sys.exit(run_helper(mount_device, "shardfs", arguments))
    sys.exit(run(arguments))


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
