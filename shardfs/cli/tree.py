"""The `shardfs tree` command: the files of a device, without mounting it.

Role: asks a device or a mount for directories, and prints them as a tree.

Invariants:
    I1. A directory that is its own ancestor, which only damage makes, is not followed.

Not here: where the answers come from (fuse/tree_requests.py).
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final, NamedTuple

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.looking import look_at
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json_line, printable, size_text, time_text
from shardfs.cli.pages import pages_of
from shardfs.errors import UsageError
from shardfs.fuse.targets import Target

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
}


class Line(NamedTuple):
    """One entry of the tree."""

    branch: str
    path: str
    entry: dict[str, Any]


@examples(
    {
        "shardfs tree disk.img": "all of an image",
        "shardfs tree disk.img photos --depth 1 --long": "one directory, with modes and sizes",
    }
)
@click.command()
@click.argument("target", type=PATH)
@click.argument("path", type=PATH, required=False)
@click.option("--depth", type=click.IntRange(min=1), help="Go no deeper.")
@click.option("--long", "is_long", is_flag=True, help="Show mode, owner, size and time too.")
@json_option
def tree(target: str, path: str | None, depth: int | None, is_long: bool, as_json: bool) -> int:
    """Show the tree of files below PATH, without mounting; also where parts of it are lost.

    TARGET is a device or image file, a mount point, or a path in a mount. Exit status 1 if names or
    inodes cannot be read. With --json, each entry is one line.
    """
    return trio.run(partial(_tree, target, path, depth, is_long, as_json))


async def _tree(
    name: str, path: str | None, depth: int | None, is_long: bool, as_json: bool
) -> int:
    counts = {"directory": 0, "file": 0, "lost": 0}
    async with look_at(name) as target:
        inner = target.path_of(path)
        root = await target.conversation.answer({"request": "inode", "path": inner})
        if kind_of(root) != "directory":
            raise UsageError(f"/{printable(inner)} is a {kind_of(root)}; name a directory")
        if not as_json:
            click.echo(f"/{printable(inner)}")
        async for line in _lines(target, root["ino"], inner, depth):
            entry = line.entry
            kind = "lost" if "lost" in entry else kind_of(entry)
            counts[kind] = counts.get(kind, 0) + 1
            if as_json:
                print_json_line({"path": line.path, "kind": kind, **entry})
            else:
                click.echo(line.branch + _text(entry, kind, is_long))
    if not as_json:
        others = sum(counts.values()) - counts["directory"] - counts["file"] - counts["lost"]
        text = f"{counts['directory']} directories, {counts['file']} files"
        text += f", {others} others" if others else ""
        text += f"; {counts['lost']} entries cannot be read" if counts["lost"] else ""
        click.echo(text)
    return FINDING if counts["lost"] else SUCCESS


async def _lines(target: Target, ino: int, path: str, depth: int | None) -> AsyncIterator[Line]:
    """Everything below a directory, in the order of the tree."""
    request = {"request": "list-begin", "ino": ino}
    waiting = [("", path, await _entries(target, request), frozenset({ino}))]
    while waiting:
        indent, above, entries, ancestors = waiting[-1]
        if not entries:
            waiting.pop()
            continue
        entry = entries.pop()
        below = f"{above}/{entry['name']}" if above else entry["name"]
        if entry.get("ino") in ancestors:
            entry = {"name": entry["name"], "lost": "it is a directory above itself"}
        yield Line(indent + ("├── " if entries else "└── "), below, entry)
        is_directory = "lost" not in entry and kind_of(entry) == "directory"
        if is_directory and (depth is None or len(waiting) < depth):
            further = indent + ("│   " if entries else "    ")
            request = {"request": "list-begin", "ino": entry["ino"]}
            inner = await _entries(target, request)
            waiting.append((further, below, inner, ancestors | {entry["ino"]}))


async def _entries(target: Target, request: dict[str, Any]) -> list[dict[str, Any]]:
    """A directory's entries, the first by name at the end."""
    found = [each async for each in pages_of(target.conversation, request, "list-more", "entries")]
    return sorted(found, key=lambda each: each["name"], reverse=True)


def kind_of(entry: dict[str, Any]) -> str:
    """What an entry is: file, directory, symlink or special."""
    return _KINDS.get(stat.S_IFMT(entry["mode"]), "special")


def _text(entry: dict[str, Any], kind: str, is_long: bool) -> str:
    name = printable(entry["name"]) or "?"
    if kind == "lost":
        return f"{name}  ({printable(entry['lost'])})"
    if kind == "symlink":
        name += f" -> {printable(entry['target'])}"
    if not is_long:
        return name
    owner = f"{entry['uid']}:{entry['gid']}"
    size = size_text(entry["size"]) if kind == "file" else "-"
    mode, time = stat.filemode(entry["mode"]), time_text(entry["mtime_ns"])
    return f"[{mode} {owner} {size} {time}]  {name}"
