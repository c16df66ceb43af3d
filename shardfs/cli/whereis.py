"""The `shardfs whereis` command: what a byte of the device is, and of which file.

Role: asks a device or a mount, and prints. The way back is `shardfs map`.

Not here: where the answers come from (fuse/map_requests.py, engine/places.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import click
import trio

from shardfs.cli.examples import examples
from shardfs.cli.looking import look_at
from shardfs.cli.options import PATH, SIZE, json_option
from shardfs.cli.output import print_json, print_line, print_row, printable, size_text
from shardfs.errors import UsageError
from shardfs.fuse.targets import Target

_WIDTHS: Final = (-14, -14, 10, 40)
_PLACES_MAX: Final = 100_000


@examples(
    {
        "shardfs whereis disk.img --offset 5679968": "what is at a byte of an image",
        "shardfs whereis /srv/data --lba 11093": "what a bad sector of a mounted disk held",
        "shardfs whereis disk.img --offset 5M --length 1M": "all there is in a range",
    }
)
@click.command()
@click.argument("target", type=PATH)
@click.option("--offset", type=SIZE, help="A byte of the device.")
@click.option("--lba", type=click.IntRange(min=0), help="A sector of the device.")
@click.option(
    "--sector-bytes", type=click.Choice(["512", "4096"]), help="Of --lba; default the device's."
)
@click.option("--length", type=SIZE, help="So many bytes from there on; default one, or a sector.")
@json_option
def whereis(
    target: str,
    offset: int | None,
    lba: int | None,
    sector_bytes: str | None,
    length: int | None,
    as_json: bool,
) -> None:
    """Say what stands at a byte or a sector of the device: which file's data, or what else.

    Bytes and sectors count from the start of the device, which may be a partition. Kinds: data (of
    a file), head (of a frame of data), tree, log, superblock, garbage, padding, unwritten, free,
    outside (behind the last extent), unknown (what would tell cannot be read).
    """
    if (offset is None) == (lba is None):
        raise UsageError("say either --offset or --lba")
    trio.run(partial(_find, target, offset, lba, int(sector_bytes or 0), length, as_json))


async def _find(
    name: str,
    offset: int | None,
    lba: int | None,
    sector_bytes: int,
    length: int | None,
    as_json: bool,
) -> None:
    async with look_at(name) as target:
        if offset is None:
            assert lba is not None
            if not sector_bytes:
                info = await target.conversation.answer({"request": "info"})
                sector_bytes = info["sector_bytes"]
            offset, length = lba * sector_bytes, length or sector_bytes
        places = await _places(target, offset, length or 1)
    if as_json:
        print_json({"offset": offset, "length": length or 1, "places": places})
        return
    if length is None:
        _print_one(offset, places[0])
        return
    print_row(("FIRST", "LAST", "KIND", "WHAT"), _WIDTHS)
    for place in places:
        first, last = max(offset, place["start"]), min(offset + length, place["end"]) - 1
        print_row((str(first), str(last), place["kind"], _what(place, first, last)), _WIDTHS)


async def _places(target: Target, offset: int, length: int) -> list[dict[str, Any]]:
    places: list[dict[str, Any]] = []
    at = offset
    while at < offset + length:
        place = await target.conversation.answer({"request": "whereis", "offset": at})
        places.append(place)
        if len(places) > _PLACES_MAX:
            raise UsageError(f"more than {_PLACES_MAX} places; ask for a shorter --length")
        at = place["end"]
        if place["kind"] == "outside":
            break
    return places


def _print_one(offset: int, place: dict[str, Any]) -> None:
    print_line(f"byte {offset}: {_what(place, offset, offset)}")
    size = place["end"] - place["start"]
    where = f"bytes {place['start']} to {place['end'] - 1} of the device, {size_text(size)}"
    where += "" if place["extent"] is None else f", in extent {place['extent']}"
    click.echo(f"  part of {where}")
    if place["frame"] is not None:
        click.echo(f"  frame   starts at byte {place['frame']}")


def _what(place: dict[str, Any], first: int, last: int) -> str:
    """What the bytes from `first` to `last` of a place are."""
    names = " = ".join(printable(path) for path in place["paths"])
    if not names and place["ino"] is not None:
        names = f"inode {place['ino']}"
    if place["file_start"] is not None:
        start = place["file_start"] + first - place["start"]
        end = start + last - first
        bytes_text = f"byte {start}" if start == end else f"bytes {start} to {end}"
        return f"{bytes_text} of {names}"
    if names:
        return f"{place['text']}; of {names}"
    return str(place["text"])
