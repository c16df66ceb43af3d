"""The `shardfs pending` command: which files would not survive a power cut as they are now.

Role: asks a mount, and prints.

Not here: where the answers come from (fuse/durability_requests.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.options import PATH, json_option
from shardfs.cli.output import print_json, print_line, print_row, printable, size_text
from shardfs.cli.pages import pages_of
from shardfs.fuse.targets import default_target, open_target

_WIDTHS: Final = (14, -10, 40)


@examples(
    {
        "shardfs pending /srv/data": "all files of a mount",
        "shardfs pending /srv/data/photos/001.jpg": "is this one safe to lose power on now?",
    }
)
@click.command()
@click.argument("path", type=PATH, required=False)
@json_option
def pending(path: str | None, as_json: bool) -> int:
    """Say which files at or below PATH, a path in a mount, a power cut would set back now.

    Pending is "data" that is only buffered, "changes" of data, attributes or names that are not
    durable yet, or the "name" that was asked for. Exit status 0: nothing is pending, all of it is
    safe; 1: something is. For programs: the extended attribute user.shardfs.persistent of a file
    is "yes" or "no". To make all durable: shardfs sync.
    """
    name = path if path is not None else default_target()
    files = trio.run(partial(_ask, name))
    if as_json:
        print_json({"persistent": not files, "files": files})
    elif not files:
        click.echo(f"{printable(name)}: everything is durable")
    else:
        print_row(("PENDING", "BUFFERED", "PATH"), _WIDTHS)
        for file in files:
            where = " = ".join(map(printable, file["paths"])) or f"inode {file['ino']} (no name)"
            cells = (", ".join(file["pending"]), size_text(file["buffered_bytes"]), where)
            print_row(cells, _WIDTHS)
        print_line(
            f"{len(files)} would not survive a power cut as they are now; make them durable: "
            f"shardfs sync --wait {printable(name)}"
        )
    return FINDING if files else SUCCESS


async def _ask(name: str) -> list[dict[str, Any]]:
    async with open_target(name) as target:
        request = {"request": "pending-begin", "path": target.inner_path}
        files = pages_of(target.conversation, request, "pending-more", "files")
        return [each async for each in files]
