"""The `shardfs map` command: where on the device the bytes of a file lie.

Role: asks a device or a mount, and prints. The way back is `shardfs whereis`.

Not here: where the answers come from (fuse/map_requests.py).
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
from shardfs.cli.output import print_json, print_row, printable, size_text
from shardfs.cli.pages import rest_of
from shardfs.errors import UsageError
from shardfs.fuse.targets import Target

_WIDTHS: Final = (-10, -9, -12, 8, -6, -12, 7)


@examples(
    {
        "shardfs map disk.img photos/001.jpg": "of a file on an image",
        "shardfs map /srv/data/photos/001.jpg": "of a file in a mount",
    }
)
@click.command("map")
@click.argument("target", type=PATH)
@click.argument("path", type=PATH, required=False)
@json_option
def map_file(target: str, path: str | None, as_json: bool) -> int:
    """Say where each byte of a file lies: which shard, chunk, and byte of the device.

    TARGET is a device or image file, a mount point, or a path in a mount. ADDRESS is the byte of
    the device where a range of the file begins; FRAME is where the chunk's frame does, and SKIP the
    first byte of its payload that counts.

    Exit status 1 if the place of some bytes cannot be read.
    """
    return trio.run(partial(_map, target, path, as_json))


async def _map(name: str, path: str | None, as_json: bool) -> int:
    async with look_at(name) as target:
        inner = target.path_of(path)
        if not inner:
            raise UsageError(f"say which file of {target.name}")
        file = await target.conversation.answer({"request": "map-begin", "path": inner})
        if as_json:
            ranges = [each async for each in _ranges(target, file["size"])]
            print_json({"path": inner, "ino": file["ino"], "size": file["size"], "ranges": ranges})
            return FINDING if any("lost" in each for each in ranges) else SUCCESS
        click.echo(f"/{printable(inner)}: inode {file['ino']}, {size_text(file['size'])}")
        header = ("START", "LENGTH", "ADDRESS", "SHARD", "EXTENT", "FRAME", "SKIP")
        print_row(header, _WIDTHS)
        end, status = 0, SUCCESS
        async for each in _ranges(target, file["size"]):
            _print_hole(end, each["start"])
            end = each["start"] + each["length"]
            if "lost" in each:
                status = FINDING
                where = (str(each["start"]), str(each["length"]))
                print_row((*where, f"cannot be read: {printable(each['lost'])}"), _WIDTHS)
                continue
            cells = (each[key] for key in ("start", "length", "address", "shard", "extent"))
            print_row((*map(str, cells), str(each["frame"]), str(each["skip"])), _WIDTHS)
        _print_hole(end, file["size"])
    return status


async def _ranges(target: Target, size: int) -> AsyncIterator[dict[str, Any]]:
    """Where the bytes of the file lie; what is lost, only up to its end."""
    async for each in rest_of(target.conversation, "map-more", "ranges"):
        if "lost" in each:
            each["length"] = min(each["length"], size - each["start"])
        if each["length"] > 0:
            yield each


def _print_hole(start: int, end: int) -> None:
    if start < end:
        print_row((str(start), str(end - start), "hole"), _WIDTHS)
