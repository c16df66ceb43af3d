"""The `shardfs shards` commands: which shards there are, where they lie, and what is in them.

Role: asks a device or a mount, and prints. A shard is named INODE.INDEX, such as 12.0: the first
4 MiB of the file with inode 12 are its shard 0. In place of a shard, a path or inode:12 names all
of a file.

Invariants:
    I1. `cat` writes the bytes as they are, holes as zeros, and fails at the first byte that does
        not match its checksum; what it has written before is right.

Not here: where the answers come from (fuse/inspection.py).
"""

from __future__ import annotations

import base64
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.looking import look_at
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import (
    is_wide,
    print_json,
    print_json_line,
    print_row,
    printable,
    size_text,
)
from shardfs.cli.pages import pages_of, rest_of
from shardfs.cli.progress import progress
from shardfs.errors import UsageError
from shardfs.fuse.shard_requests import READ_BYTES_MAX, parse_shard_id
from shardfs.fuse.targets import Target

_LIST_WIDTHS = (12, -10, -6, 10)
_PIECE_WIDTHS = (-8, -8, -13, -13, -7)
_PIECE_WIDTHS_MORE = (-5, -8, -14)

_TARGET_HELP = """TARGET is a device or image file, a mount point, or a path in a mount. PATH may
also be inode:12, the file with that inode; a file of that name is ./inode:12."""


@examples(
    {
        "shardfs shards ls disk.img": "everything on an image",
    }
)
@click.group(short_help="List, explain, print and verify shards.")
def shards() -> None:
    """List, explain, print and verify shards, the pieces that files are kept in."""


@examples(
    {
        "shardfs shards ls /srv/data/photos": "of a directory in a mount",
        "shardfs shards ls disk.img photos --json": "of an image, one a line",
    }
)
@shards.command("ls", epilog=_TARGET_HELP)
@click.argument("target", type=PATH)
@click.argument("path", type=PATH, required=False)
@click.option("--path", "path_option", type=PATH, help="The same as PATH.")
@json_option
def list_shards(target: str, path: str | None, path_option: str | None, as_json: bool) -> int:
    """List the shards of the file or directory PATH; without it, all of them.

    Exit status 1 if some cannot be listed: the tree is damaged. With --json, each shard is one
    line.
    """
    return trio.run(partial(_list, target, path if path is not None else path_option, as_json))


async def _list(name: str, path: str | None, as_json: bool) -> int:
    status = SUCCESS
    async with look_at(name) as target:
        request = {"request": "shards-begin"} | target.file_of(path)
        await target.conversation.answer(request)
        if not as_json:
            print_row(("SHARD", "BYTES", "PIECES", "STATE", "PATH"), _LIST_WIDTHS)
        async for shard in rest_of(target.conversation, "shards-more", "shards"):
            if "lost" in shard:
                status = FINDING
            if as_json:
                print_json_line(shard)
                continue
            where = "(no name)" if shard["path"] is None else "/" + printable(shard["path"])
            if "lost" in shard:
                where += f": {printable(shard['lost'])}"
                print_row(("-", "-", "-", "lost", where), _LIST_WIDTHS)
                continue
            cells = (shard["id"], str(shard["bytes"]), str(shard["pieces"]), _state(shard), where)
            print_row(cells, _LIST_WIDTHS)
    return status


@examples(
    {
        "shardfs shards show /srv/data/photos/001.jpg": "all shards of a file",
        "shardfs shards show disk.img 12.0": "the first shard of inode 12",
    }
)
@shards.command("show", epilog=_TARGET_HELP)
@click.argument("target", type=PATH)
@click.argument("shard", metavar="[SHARD_ID|PATH]", required=False)
@json_option
def show_shard(target: str, shard: str | None, as_json: bool) -> int:
    """Say where the pieces of a shard lie on the device; of each shard, if a file is named.

    ADDRESS is the byte of the device where a piece begins; FRAME is the place of its chunk's frame,
    EXTENT:OFFSET, as `shardfs inspect chunk` takes it; SKIP the first byte of the chunk that is
    taken; CHECKSUMS the first granule's and how many more there are. A wide terminal shows more.

    Exit status 1 if some of the file's shards cannot be told.
    """
    return trio.run(partial(_show, target, shard, as_json))


async def _show(name: str, what: str | None, as_json: bool) -> int:
    status = SUCCESS
    async with look_at(name) as target:
        found = []
        async for ino, index, lost in _named_shards(target, what):
            if lost:
                status = FINDING
                click.echo(f"shardfs: {printable(lost)}", err=True)
                continue
            request = {"request": "shard", "ino": ino, "index": index}
            shard = await target.conversation.answer(request)
            if as_json:
                found.append(shard)
            else:
                _print_shard(shard)
        if as_json:
            print_json(found)
    return status


def _print_shard(shard: dict[str, Any]) -> None:
    click.echo(
        f"shard {shard['id']}: bytes {shard['start']} and on of inode {shard['ino']}, "
        f"{size_text(shard['bytes'])} in {len(shard['pieces'])} pieces, {_state(shard)}"
    )
    more = ("EPOCH", "CHUNK", "SEQUENCE") if is_wide() else ()
    widths = (*_PIECE_WIDTHS, *_PIECE_WIDTHS_MORE) if more else _PIECE_WIDTHS
    print_row(("START", "LENGTH", "ADDRESS", "FRAME", "SKIP", *more, "CHECKSUMS"), widths)
    for piece in shard["pieces"]:
        chunk = piece["chunk"]
        digests = chunk["checksums"]
        cells = [str(piece[name]) for name in ("start", "length", "address")]
        cells += [f"{chunk['extent']}:{chunk['offset']}", str(piece["skip"])]
        if more:
            cells += [str(chunk["epoch"]), str(chunk["length"]), f"{chunk['sequence']:#x}"]
        others = f" +{len(digests) - 1}" if len(digests) > 1 else ""
        print_row((*cells, f"{digests[0]}{others}" if digests else "-"), widths)


@examples(
    {
        "shardfs shards cat disk.img photos/001.jpg >001.jpg": "without mounting",
    }
)
@shards.command("cat", epilog=_TARGET_HELP)
@click.argument("target", type=PATH)
@click.argument("shard", metavar="[SHARD_ID|PATH]", required=False)
def cat_shard(target: str, shard: str | None) -> None:
    """Write the bytes of a shard, or of a whole file, to standard output."""
    trio.run(partial(_cat, target, shard))


async def _cat(name: str, what: str | None) -> None:
    async with look_at(name) as target:
        shard_id = _shard_id(target, what)
        if shard_id is not None:
            ino, index = shard_id
            found = await target.conversation.answer(
                {"request": "shard", "ino": ino, "index": index}
            )
            await _write_out(target, ino, index, found["shard_bytes"])
            return
        request = {"request": "file"} | target.file_of(what)
        file = await target.conversation.answer(request)
        for index in range(-(-file["size"] // file["shard_bytes"])):
            await _write_out(target, file["ino"], index, file["shard_bytes"])


async def _write_out(target: Target, ino: int, index: int, length: int) -> None:
    """The bytes of one shard to standard output, up to the end of its file."""
    start = 0
    while start < length:
        request = {
            "request": "read",
            "ino": ino,
            "index": index,
            "start": start,
            "length": min(READ_BYTES_MAX, length - start),
        }
        data = base64.b64decode((await target.conversation.answer(request))["data"])
        if not data:
            break
        sys.stdout.buffer.write(data)
        start += len(data)
    sys.stdout.buffer.flush()


@examples(
    {
        "shardfs shards verify disk.img photos": "all files below a directory of an image",
        "shardfs shards verify /srv/data/photos/001.jpg": "one file in a mount",
    }
)
@shards.command("verify", epilog=_TARGET_HELP)
@click.argument("target", type=PATH)
@click.argument("shard", metavar="[SHARD_ID|PATH]", required=False)
@json_option
def verify_shard(target: str, shard: str | None, as_json: bool) -> int:
    """Read the data of a shard, of a file, or of all files below a directory, and check it.

    What does not match its checksum, or cannot be read, is printed as bytes of the file; exit
    status 1 then, and if the tree is damaged so that not all shards are known. Without SHARD_ID or
    PATH: everything. With --json, each shard is one line.
    """
    return trio.run(partial(_verify, target, shard, as_json))


async def _verify(name: str, what: str | None, as_json: bool) -> int:
    count = size = damaged_bytes = lost_count = 0
    async with look_at(name) as target:
        with progress("verifying") as bar:
            async for ino, index, path, lost in _shards_to_verify(target, what):
                if lost:
                    lost_count += 1
                    if as_json:
                        print_json_line({"path": path, "lost": lost})
                    else:
                        click.echo(f"/{printable(path or '')}: {printable(lost)}")
                    continue
                bar.show(size, None, f"verifying: {count} shards, {size_text(size)}")
                request = {"request": "verify", "ino": ino, "index": index}
                shard = await target.conversation.answer(request) | {"path": path}
                count, size = count + 1, size + shard["bytes"]
                damaged_bytes += sum(each["length"] for each in shard["damaged"])
                if as_json:
                    print_json_line(shard)
                    continue
                for each in shard["damaged"]:
                    last = each["start"] + each["length"] - 1
                    where = f"inode {ino}" if path is None else f"/{printable(path)}"
                    click.echo(f"{where} bytes {each['start']} to {last}: {each['error']}")
    if not as_json:
        verdict = f"{size_text(damaged_bytes)} damaged" if damaged_bytes else "all right"
        verdict += "; the tree is damaged, so there may be more shards" if lost_count else ""
        click.echo(f"{count} shards, {size_text(size)}: {verdict}")
    return FINDING if damaged_bytes or lost_count else SUCCESS


async def _shards_to_verify(
    target: Target, what: str | None
) -> AsyncIterator[tuple[int, int, str | None, str]]:
    """(inode, index, path, "") of the shards that the user named; (0, 0, path, trouble) for what
    cannot be read of the tree."""
    shard_id = parse_shard_id(what) if what is not None else None
    if shard_id is not None:
        yield *shard_id, None, ""
        return
    async for shard in _shards_below(target, target.file_of(what)):
        yield shard.get("ino", 0), shard.get("index", 0), shard["path"], shard.get("lost", "")


def _state(shard: dict[str, Any]) -> str:
    return "persistent" if shard["persistent"] else "pending"


def _shard_id(target: Target, what: str | None) -> tuple[int, int] | None:
    if what is None and not target.inner_path:
        raise UsageError(f"say which shard of {target.name}: an id like 12.0, or a path")
    return parse_shard_id(what) if what is not None else None


async def _named_shards(target: Target, what: str | None) -> AsyncIterator[tuple[int, int, str]]:
    """(inode, index, "") of the one shard, or of the shards of the file, that the user named;
    (0, 0, trouble) for what cannot be read of the tree."""
    shard_id = _shard_id(target, what)
    if shard_id is not None:
        yield *shard_id, ""
        return
    file = target.file_of(what)
    await target.conversation.answer({"request": "file"} | file)
    async for shard in _shards_below(target, file):
        yield shard.get("ino", 0), shard.get("index", 0), shard.get("lost", "")


def _shards_below(target: Target, file: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    request = {"request": "shards-begin"} | file
    return pages_of(target.conversation, request, "shards-more", "shards")
