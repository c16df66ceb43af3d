"""The `shardfs cp-out` command: copies files out of a device without mounting it.

Role: goes through the directories below a path and has each entry copied.

Invariants:
    I1. Without --ignore-errors it ends at the first file that cannot be copied whole.

Not here: copying one entry (copying_out.py).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.copying_out import DAMAGED_SUFFIX, Copied, Copier
from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.looking import look_at
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, printable, size_text
from shardfs.cli.pages import pages_of
from shardfs.cli.progress import progress
from shardfs.errors import ShardfsError, UsageError
from shardfs.fuse.targets import Target


@examples(
    {
        "shardfs cp-out disk.img photos /tmp": "a directory, to /tmp/photos",
        "shardfs cp-out disk.img / /tmp/all": "everything, to a new directory",
        "shardfs cp-out broken.img / /tmp/all --ignore-errors": "what can still be read",
    }
)
@click.command("cp-out")
@click.argument("target", type=PATH)
@click.argument("path", type=PATH)
@click.argument("dest", type=PATH)
@click.option(
    "--ignore-errors",
    is_flag=True,
    help="Go on; keep files with missing bytes as NAME.damaged.",
)
@json_option
def cp_out(target: str, path: str, dest: str, ignore_errors: bool, as_json: bool) -> int:
    """Copy the file or directory PATH, and all below it, to DEST, without mounting.

    Modes, times, extended attributes, links and holes are kept; owners when root copies. Into DEST
    if that is a directory, else DEST is the new name. Nothing that exists is overwritten. A file
    that cannot be read whole is not copied; with --ignore-errors what is right of it is kept as
    NAME.damaged, with holes for the rest, and the others are copied. Exit status 1 then.
    """
    copied = trio.run(partial(_copy, target, path, dest, ignore_errors))
    if as_json:
        print_json(asdict(copied))
    else:
        _print(copied)
    return SUCCESS if copied.is_whole else FINDING


async def _copy(name: str, path: str, dest: str, ignore_errors: bool) -> Copied:
    async with look_at(name) as target:
        inner = target.path_of(path)
        entry = await target.conversation.answer({"request": "inode", "path": inner})
        to = _new_name(dest, inner)
        with progress("copying") as bar:

            def changed() -> None:
                done = copier.copied
                text = f"{done.files} files, {size_text(done.bytes)}"
                bar.show(done.bytes, None, text)

            copier = Copier(target.conversation, changed)
            walk = _Walk(target, copier, ignore_errors)
            await walk.copy(entry, inner, to, frozenset())
        return copier.copied


class _Walk:
    """Goes through directories."""

    def __init__(self, target: Target, copier: Copier, ignore_errors: bool) -> None:
        self._target = target
        self._copier = copier
        self._ignore_errors = ignore_errors

    @property
    def has_ended(self) -> bool:
        """Something failed, and that ends it (I1)."""
        return not self._ignore_errors and not self._copier.copied.is_whole

    async def copy(
        self, entry: dict[str, Any], path: str, to: str, ancestors: frozenset[int]
    ) -> None:
        """Copy an entry and all below it."""
        if "lost" in entry:
            self._copier.fail(path, entry["lost"])
            return
        try:
            if stat.S_ISDIR(entry["mode"]):
                await self._copy_directory(entry, path, to, ancestors)
            else:
                await self._copier.copy(entry, path, to)
                if self.has_ended:
                    _remove(f"{to}{DAMAGED_SUFFIX}")
        except OSError as error:
            self._copier.fail(path, f"{to}: {error.strerror}")
        except ShardfsError as error:
            self._copier.fail(path, str(error))

    async def _copy_directory(
        self, entry: dict[str, Any], path: str, to: str, ancestors: frozenset[int]
    ) -> None:
        if entry["ino"] in ancestors:
            self._copier.fail(path, "it is a directory above itself")
            return
        _make_directory(to)
        self._copier.copied.directories += 1
        request = {"request": "list-begin", "ino": entry["ino"]}
        answers = pages_of(self._target.conversation, request, "list-more", "entries")
        for each in [each async for each in answers]:
            below = f"{path}/{each['name']}" if path else each["name"]
            await self.copy(each, below, os.path.join(to, each["name"]), ancestors | {entry["ino"]})
            if self.has_ended:
                return
        await self._copier.dress(entry, path, to)


def _new_name(dest: str, inner: str) -> str:
    """Where the copy goes: into a directory that is there, or to a new name."""
    return os.path.join(dest, os.path.basename(inner)) if inner and os.path.isdir(dest) else dest


def _remove(path: str) -> None:
    """Take a file away, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def _make_directory(path: str) -> None:
    """A directory, there already or new; no symbolic link to one."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise UsageError(f"{path} exists and is no directory") from None


def _print(copied: Copied) -> None:
    for each in copied.damaged:
        last = each["start"] + each["length"] - 1
        click.echo(
            f"/{printable(each['path'])} bytes {each['start']} to {last}: "
            f"{printable(each['error'])}",
            err=True,
        )
    for each in copied.failed:
        click.echo(f"/{printable(each['path'])}: {printable(each['error'])}", err=True)
    text = f"{copied.files} files, {copied.directories} directories, "
    text += f"{copied.links + copied.others} links and others, {size_text(copied.bytes)} copied"
    if not copied.is_whole:
        text += f"; {len({each['path'] for each in (*copied.damaged, *copied.failed)})} not whole"
    click.echo(text)
