"""The `shardfs why` command: what holds the space of an extent, or of a file.

Role: asks a device or a mount, and prints.

Not here: where the answers come from (fuse/explanations.py, engine/occupancy.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.looking import look_at
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_facts, print_json, print_line, print_row, printable, size_text
from shardfs.errors import UsageError
from shardfs.fuse.targets import Target

_FILE_WIDTHS: Final = (-9, -7, 30)
_EXTENT_WIDTHS: Final = (-6, 8, 10, -10, -10, -10)
_RANGES_SHOWN: Final = 2
_EXTENTS_SHOWN: Final = 16
_REMOVED: Final = {
    "open": "removed, and still open somewhere",
    "being-freed": "removed, and about to be freed",
    "freed-by-next-mount": "removed; the next mount frees it",
}


@examples(
    {
        "shardfs why /srv/data/photos/001.jpg": "where a file lies, what it costs",
        "shardfs why disk.img 20": "why extent 20 is not free",
    }
)
@click.command()
@click.argument("target", type=PATH)
@click.argument("what", metavar="[EXTENT|PATH]", type=PATH, required=False)
@json_option
def why(target: str, what: str | None, as_json: bool) -> int:
    """Say why an extent is not free and which files are in it, or where the bytes of a file are.

    TARGET is a device or image file, a mount point, or a path in a mount. EXTENT is a number; a
    file whose name is a number is named like ./17, and one without a name by inode:12. For a
    directory, all files below it are added up. Exit status 1 if the tree is damaged, so that files
    may be missing.
    """
    return trio.run(partial(_explain, target, what, as_json))


async def _explain(name: str, what: str | None, as_json: bool) -> int:
    async with look_at(name) as target:
        if what is None and not target.inner_path:
            raise UsageError(f"say what of {target.name}: the number of an extent, or a path")
        if what is not None and what.isascii() and what.isdecimal():
            return await _explain_extent(target, int(what), as_json)
        answer = await target.conversation.answer({"request": "path"} | target.file_of(what))
        if as_json:
            print_json(answer)
        else:
            _print_path(answer)
        return FINDING if answer["lost"] else SUCCESS


# --- an extent ----------------------------------------------------------------------------------


async def _explain_extent(target: Target, number: int, as_json: bool) -> int:
    extent = await target.conversation.answer({"request": "extent", "extent": number})
    if as_json:
        extent["files"] = [file async for file in _files_in(target, number)]
        print_json(extent)
        return FINDING if any("lost" in each for each in extent["files"]) else SUCCESS
    _print_extent(extent)
    has_files, status = False, SUCCESS
    async for file in _files_in(target, number):
        if "lost" in file:
            status = FINDING
            _print_lost(file["lost"])
            continue
        if not has_files:
            print_row(("BYTES", "RANGES", "OF THE FILE", "PATH"), _FILE_WIDTHS)
        has_files = True
        _print_file(file)
    return status


async def _files_in(target: Target, number: int) -> AsyncIterator[dict[str, Any]]:
    await target.conversation.answer({"request": "extent-files-begin", "extent": number})
    while True:
        page = await target.conversation.answer({"request": "extent-files-more"})
        for file in page["files"]:
            yield file
        if page["end"]:
            return


def _print_extent(extent: dict[str, Any]) -> None:
    size = extent["size_bytes"]
    kind = f"{extent['state']}, {extent['stream']}" if extent["stream"] else extent["state"]
    print_facts(
        [
            (f"extent {extent['extent']}", kind),
            ("place", f"{size_text(size)} from byte {extent['offset']} of the device"),
            ("epoch", f"{extent['epoch']}, write pointer {extent['write_pointer']}"),
            ("live", _with_share(extent["live_bytes"], size)),
            ("garbage", _with_share(extent["garbage_bytes"], size)),
        ]
    )
    for content in extent["contents"]:
        click.echo(f"  {size_text(content['bytes'])} of {content['name']}")
    click.echo("it is free" if not extent["holds"] else "it is not free:")
    for hold in extent["holds"]:
        print_line(f"  {hold['kind']}: {hold['text']}")


def _print_file(file: dict[str, Any]) -> None:
    if "key" in file:
        print_row((size_text(file["bytes"]), "-", "-", f"key {file['key']}"), _FILE_WIDTHS)
        return
    shown = ", ".join(
        f"{start}-{start + length - 1}" for start, length in file["ranges"][:_RANGES_SHOWN]
    )
    more = ", ..." if len(file["ranges"]) > _RANGES_SHOWN else ""
    names = " = ".join(printable(path) for path in file["paths"])
    where = names or f"inode {file['ino']} ({_removed_text(file)})"
    cells = (size_text(file["bytes"]), str(len(file["ranges"])), shown + more, where)
    print_row(cells, _FILE_WIDTHS)


# --- a path -------------------------------------------------------------------------------------


def _print_path(answer: dict[str, Any]) -> None:
    name = "" if answer["path"] is None else f"/{printable(answer['path'].lstrip('/'))}"
    facts = [(answer["kind"], name or _removed_text(answer)), ("inode", str(answer["ino"]))]
    if answer["removed"]:
        facts.append(("state", _removed_text(answer)))
    others = [printable(path) for path in answer["paths"] if path != name]
    if others:
        facts.append((f"{answer['names']} names", ", ".join(others)))
    if answer["kind"] == "directory":
        facts.append(("files", f"{answer['files']}, below it"))
    else:
        facts.append(("size", size_text(answer["size"])))
    facts += [
        (
            "stored",
            f"{size_text(answer['stored_bytes'])} in {answer['shards']} shards, "
            f"{answer['pieces']} pieces of {answer['chunks']} chunks",
        ),
        (
            "on device",
            f"{size_text(answer['device_bytes'])}; its chunks also hold "
            f"{size_text(answer['overwritten_bytes'])} that were overwritten or cut off since",
        ),
        (
            "extents",
            f"{answer['extent_count']}, which also hold "
            f"{size_text(answer['garbage_held_bytes'])} of garbage",
        ),
    ]
    print_facts(facts)
    for each in answer["lost"]:
        _print_lost(each)
    if not answer["extents"]:
        return
    header = ("EXTENT", "STATE", "STREAM", "OF IT", "LIVE", "GARBAGE", "NOT FREE")
    print_row(header, _EXTENT_WIDTHS)
    for extent in answer["extents"][:_EXTENTS_SHOWN]:
        sizes = (extent["bytes"], extent["live_bytes"], extent["garbage_bytes"])
        cells = (str(extent["extent"]), extent["state"], extent["stream"], *map(size_text, sizes))
        print_row((*cells, ", ".join(extent["holds"])), _EXTENT_WIDTHS)
    if answer["extent_count"] > _EXTENTS_SHOWN:
        click.echo(f"and {answer['extent_count'] - _EXTENTS_SHOWN} more; see --json")


def _print_lost(trouble: str) -> None:
    print_line(f"there may be more; what the tree says cannot be read: {printable(trouble)}")


def _removed_text(answer: dict[str, Any]) -> str:
    return _REMOVED.get(answer["removed"] or "", "no name")


def _with_share(size: int, total: int) -> str:
    return f"{size_text(size)} ({100 * size / total:.1f} %)"
