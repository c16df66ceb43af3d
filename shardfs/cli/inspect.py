"""The `shardfs inspect` commands: any structure of the device as fields, also a damaged one.

Role: finds a structure by its place or by what names it, takes it apart and prints it. Nothing has
to be whole: what does not hold is said, with exit status 1.

Not here: taking structures apart (engine/dissection.py), finding them (engine/raw_store.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Final

import click
import trio

from shardfs.cli.errors import FINDING, SUCCESS
from shardfs.cli.examples import examples
from shardfs.cli.inspect_output import (
    dissection_as_json,
    hex_lines,
    print_dissection,
    print_troubles,
)
from shardfs.cli.options import PATH, SIZE, json_option
from shardfs.cli.output import print_facts, print_json, print_line, print_row, printable
from shardfs.engine.dissection import Dissection, dissect_frame, dissect_value
from shardfs.engine.frame_walk import Span
from shardfs.engine.layout import ExtentState, Kind, Stream
from shardfs.engine.lsm.entry import TOMBSTONE
from shardfs.engine.raw_store import RawStore, open_raw_store, record_addresses
from shardfs.errors import CorruptionError, DeviceError, UsageError
from shardfs.fuse.key_texts import key_text
from shardfs.fuse.keys import INO_MAX, ROOT_INO, entry_key, inode_key, shard_key
from shardfs.fuse.raw_targets import open_raw
from shardfs.fuse.record_dissection import dissection_of
from shardfs.fuse.records import decode_entry

_PLACE: Final = re.compile(r"(\d{1,10}):(\d{1,10})")
_SPAN_WIDTHS: Final = (-8, -8, 10, 10, -5, 14, 20)
_SEGMENT_WIDTHS: Final = (-5, -5, -8, -10, 14, 40)
_INODE: Final = re.compile(r"(?:inode:)?(\d{1,19})")
_SHARD: Final = re.compile(r"(\d{1,19})\.(\d{1,19})")
_COPIES: Final = ("first", "second")


@dataclass(frozen=True)
class Wishes:
    """What all of these commands take."""

    target: str
    extent_bytes: int | None
    with_hex: bool
    as_json: bool


Command = Callable[..., Any]


def _common(command: Command) -> Command:
    """The argument and options of every inspect command, which is called with Wishes of them."""

    @wraps(command)
    def called(
        target: str, extent_size: int | None, with_hex: bool, as_json: bool, **others: Any
    ) -> Any:
        return command(Wishes(target, extent_size, with_hex, as_json), **others)

    called = json_option(called)
    called = click.option("--hex", "with_hex", is_flag=True, help="Show the bytes.")(called)
    called = click.option(
        "--extent-size", type=SIZE, help="Where no superblock says it, such as 64M."
    )(called)
    return click.argument("target", type=PATH)(called)


offset_option = click.option("--offset", type=SIZE, help="A byte of the device, in place of PLACE.")


@examples({"shardfs inspect super disk.img": "what the superblock says"})
@click.group("inspect", short_help="Show structures of the device as fields.")
def inspect() -> None:
    """Show any structure of the device as fields, named as in docs/format.md; a damaged one too.

    A PLACE is EXTENT:OFFSET, such as 5:437152, or a byte of the device by --offset. What does not
    hold (a checksum, a length) is said in lines that begin with "!", and the exit status is 1.
    """


def _run(wishes: Wishes, show: Callable[[RawStore], Any]) -> int:
    async def run() -> int:
        async with open_raw(wishes.target) as device:
            return int(await show(await open_raw_store(device, wishes.extent_bytes)))

    return trio.run(run)


# --- superblock ---------------------------------------------------------------------------------


@examples(
    {
        "shardfs inspect super disk.img": "the last record of both copies",
        "shardfs inspect super disk.img --all": "every record of both",
    }
)
@inspect.command("super")
@_common
@click.option("--all", "show_all", is_flag=True, help="Every record, not the last one alone.")
def show_super(wishes: Wishes, show_all: bool) -> int:
    """Show both copies of the superblock log."""
    return _run(wishes, partial(_super, wishes, show_all))


async def _super(wishes: Wishes, show_all: bool, store: RawStore) -> int:
    copies: list[dict[str, Any]] = []
    status = SUCCESS
    for number, copy in enumerate(store.copies):
        is_found = copy.last is not None
        addresses = await record_addresses(store, number) if is_found else [copy.start]
        shown = [await _dissected(store, at) for at in (addresses if show_all else addresses[-1:])]
        if not is_found or any(each.troubles for each in shown):
            status = FINDING
        chosen = addresses if show_all else addresses[-1:]
        facts = {
            "copy": _COPIES[number],
            "start": copy.start,
            "records": len(addresses) if is_found else 0,
            "trouble": copy.trouble,
            "shown": [
                {"address": at, **dissection_as_json(each, with_hex=wishes.with_hex)}
                for at, each in zip(chosen, shown, strict=True)
            ],
        }
        copies.append(facts)
        if not wishes.as_json:
            trouble = f"damaged: {copy.trouble}" if not is_found else f"{len(addresses)} records"
            click.echo(f"{_COPIES[number]} copy, from byte {copy.start}: {trouble}")
            for at, each in zip(chosen, shown, strict=True):
                click.echo(f"record at byte {at}")
                print_dissection(each, with_hex=wishes.with_hex)
    if wishes.as_json:
        print_json(copies)
    return status


async def _dissected(store: RawStore, address: int) -> Dissection:
    dissection = dissection_of(await store.frame_at(address))
    dissect_frame(dissection)
    return dissection


# --- extents and chunks -------------------------------------------------------------------------


@examples(
    {
        "shardfs inspect extent disk.img 5": "what stands in extent 5, frame by frame",
        "shardfs inspect extent broken.img 5 --extent-size 1M": "with both superblocks lost",
    }
)
@inspect.command("extent")
@_common
@click.argument("number", type=click.IntRange(min=0))
def show_extent(wishes: Wishes, number: int) -> int:
    """Show what the superblock says of extent NUMBER, and every frame in it."""
    return _run(wishes, partial(_extent, wishes, number))


async def _extent(wishes: Wishes, number: int, store: RawStore) -> int:
    base, entry = store.address(number, 0), store.entries.get(number)
    facts: dict[str, Any] = {"extent": number, "address": base, "entry": None}
    if entry is not None:
        facts["entry"] = entry._asdict() | {
            "state": ExtentState(entry.state).name.lower(),
            "stream": Stream(entry.stream).name.lower(),
        }
    spans = store.spans(number).spans()
    if wishes.as_json:
        facts["spans"] = [_span_as_json(span) async for span in spans]
        print_json(facts)
        return SUCCESS
    print_facts([("extent", f"{number}, from byte {base} of the device")])
    if facts["entry"] is not None:
        words = (f"{name} {value}" for name, value in list(facts["entry"].items())[1:])
        print_facts([("entry", ", ".join(words))])
    header = ("OFFSET", "BYTES", "WHAT", "KIND", "EPOCH", "SEQUENCE", "OWNER")
    print_row(header, _SPAN_WIDTHS)
    async for span in spans:
        _print_span(span)
        if wishes.with_hex:
            data = await store.device.read(base + span.start, min(64, span.end - span.start))
            for line in hex_lines(bytes(data), span.start):
                click.echo(f"  {line}")
    return SUCCESS


def _print_span(span: Span) -> None:
    cells = [str(span.start), str(span.end - span.start), str(span.kind)]
    if span.frame is not None:
        frame = span.frame
        owner = key_text(frame.owner) if frame.owner else f"number {frame.owner_offset}"
        if frame.kind is Kind.DATA:
            owner += f" from {frame.owner_offset}"
        cells += [frame.kind.name, str(frame.epoch), f"{frame.sequence:#x}", printable(owner)]
    print_row(cells, _SPAN_WIDTHS)


def _span_as_json(span: Span) -> dict[str, Any]:
    answer: dict[str, Any] = {"start": span.start, "end": span.end, "what": str(span.kind)}
    frame = span.frame
    answer["frame"] = None
    if frame is not None:
        answer["frame"] = {
            "kind": frame.kind.name,
            "epoch": frame.epoch,
            "sequence": frame.sequence,
            "owner": frame.owner.hex(),
            "owner_text": key_text(frame.owner) if frame.owner else "",
            "owner_offset": frame.owner_offset,
            "payload_bytes": frame.payload_bytes,
        }
    return answer


@examples(
    {
        "shardfs inspect chunk disk.img 5:437152": "the frame that a locator names",
        "shardfs inspect chunk disk.img --offset 5680032 --hex": "at a byte of the device",
    }
)
@inspect.command("chunk")
@_common
@click.argument("place", required=False)
@offset_option
def show_chunk(wishes: Wishes, place: str | None, offset: int | None) -> int:
    """Show the frame at PLACE: its header, key, digests and, by its kind, what it holds.

    With --hex, data is shown whole.
    """
    return _run(wishes, partial(_frame, wishes, place, offset, None))


async def _frame(
    wishes: Wishes, place: str | None, offset: int | None, kinds: set[Kind] | None, store: RawStore
) -> int:
    """Show one frame, which should be of one of these kinds."""
    address = _address(store, place, offset)
    dissection = await _dissected(store, address)
    kind = next((each.value for each in dissection.fields if each.name == "kind"), "")
    if kinds is not None and kind not in {f"{int(each)} ({each.name})" for each in kinds}:
        dissection.trouble(f"a frame of kind {kind or '?'} stands there")
    if wishes.as_json:
        print_json({"address": address, **dissection_as_json(dissection, with_hex=wishes.with_hex)})
    else:
        where = f"byte {address} of the device"
        if store.extent_bytes:
            extent, inside = divmod(address, store.extent_bytes)
            where += f", extent {extent} byte {inside}"
        click.echo(where)
        print_dissection(dissection, with_hex=wishes.with_hex)
        payload = dissection.fields[-1] if dissection.fields else None
        if wishes.with_hex and payload is not None and payload.name == "payload":
            data = dissection.data[payload.offset : payload.offset + payload.length]
            for line in hex_lines(data, payload.offset):
                click.echo(line)
    return FINDING if dissection.troubles else SUCCESS


def _address(store: RawStore, place: str | None, offset: int | None) -> int:
    if (place is None) == (offset is None):
        raise UsageError("name a place: EXTENT:OFFSET, or --offset")
    if offset is not None:
        return offset
    match = _PLACE.fullmatch(place or "")
    if match is None:
        raise UsageError(f"{place!r} is no place; write it like 5:437152, or use --offset")
    return store.address(int(match[1]), int(match[2]))


# --- the tree -----------------------------------------------------------------------------------


@examples(
    {
        "shardfs inspect manifest disk.img": "the one in force",
        "shardfs inspect manifest disk.img 9:0": "an earlier one, at its place",
    }
)
@inspect.command("manifest")
@_common
@click.argument("place", required=False)
@offset_option
def show_manifest(wishes: Wishes, place: str | None, offset: int | None) -> int:
    """Show a manifest: the segments that form the tree, and live bytes of extents."""

    async def show(store: RawStore) -> int:
        at = offset
        if place is None and at is None:
            locator = store.manifest_locator()
            at = store.address(locator.extent, locator.offset)
        return await _frame(wishes, place, at, {Kind.MANIFEST}, store)

    return _run(wishes, show)


@examples(
    {
        "shardfs inspect run disk.img": "the segments of all runs",
        "shardfs inspect run disk.img 9:16384": "a run index or a block, at its place",
    }
)
@inspect.command("run")
@_common
@click.argument("place", required=False)
@offset_option
def show_run(wishes: Wishes, place: str | None, offset: int | None) -> int:
    """List the segments of all runs, or show the run index or the block at PLACE."""
    if place is None and offset is None:
        return _run(wishes, partial(_segments, wishes))
    kinds = {Kind.RUN_INDEX, Kind.RUN_BLOCK}
    return _run(wishes, partial(_frame, wishes, place, offset, kinds))


async def _segments(wishes: Wishes, store: RawStore) -> int:
    manifest = await store.manifest()
    rows = [
        {
            "run_id": each.run_id,
            "level": each.level,
            "entries": each.entry_count,
            "tombstones": each.tombstone_count,
            "index": f"{each.index_locator.extent}:{each.index_locator.offset}",
            "first_key": each.first_key.hex(),
            "last_key": each.last_key.hex(),
        }
        for each in manifest.segments
    ]
    if wishes.as_json:
        print_json({"checkpoint": manifest.checkpoint, "segments": rows})
        return SUCCESS
    click.echo(f"checkpoint {manifest.checkpoint}: deltas up to it are in these runs")
    print_row(("RUN", "LEVEL", "ENTRIES", "TOMBSTONES", "INDEX AT", "KEYS"), _SEGMENT_WIDTHS)
    for row, each in zip(rows, manifest.segments, strict=True):
        keys = f"{key_text(each.first_key)} to {key_text(each.last_key)}"
        cells = (row[name] for name in ("run_id", "level", "entries", "tombstones", "index"))
        print_row((*map(str, cells), printable(keys)), _SEGMENT_WIDTHS)
    return SUCCESS


# --- records ------------------------------------------------------------------------------------


@examples(
    {
        "shardfs inspect record disk.img /photos/001.jpg": "all versions of a file's inode",
        "shardfs inspect record disk.img 12.0": "of a shard's record",
        "shardfs inspect record disk.img key:4d": "of any key, in hexadecimal",
    }
)
@inspect.command("record")
@_common
@click.argument("what")
def show_record(wishes: Wishes, what: str) -> int:
    """Show every value of a key that the delta log and the runs still hold, newest first.

    WHAT is an inode's number, a shard like 12.0, an absolute path (of which the inode is shown), or
    a key in hexadecimal after "key:".
    """
    return _run(wishes, partial(_record, wishes, what))


async def _record(wishes: Wishes, what: str, store: RawStore) -> int:
    troubles: list[str] = []
    key = await _key_of(what, store, troubles)
    versions: list[dict[str, Any]] = []
    if not wishes.as_json:
        print_line(f"{printable(key_text(key))} (key {key.hex()})")
    for version in await store.versions(key, troubles):
        dissection = dissection_of(version.value)
        dissect_value(dissection, key, len(version.value), "entry")
        troubles += dissection.troubles
        versions.append(
            {
                "source": version.source,
                "address": version.address,
                **dissection_as_json(dissection, with_hex=wishes.with_hex),
            }
        )
        if not wishes.as_json:
            click.echo(f"in {version.source}, frame at byte {version.address}:")
            print_dissection(dissection, with_hex=wishes.with_hex)
    if wishes.as_json:
        document = {"key": key.hex(), "text": key_text(key), "versions": versions}
        print_json({**document, "troubles": troubles})
    else:
        if not versions:
            click.echo("no delta and no run holds it")
        print_troubles(Dissection(b"", troubles=[*dict.fromkeys(troubles)]))
    return FINDING if troubles else SUCCESS


async def _key_of(what: str, store: RawStore, troubles: list[str]) -> bytes:
    if what.startswith("key:"):
        try:
            key = bytes.fromhex(what.removeprefix("key:"))
        except ValueError:
            key = b""
        if not key:
            raise UsageError(f"{what!r} is no key in hexadecimal")
        return key
    shard, inode = _SHARD.fullmatch(what), _INODE.fullmatch(what)
    if shard is not None and max(map(int, shard.groups())) <= INO_MAX:
        return shard_key(int(shard[1]), int(shard[2]))
    if inode is not None and int(inode[1]) <= INO_MAX:
        return inode_key(int(inode[1]))
    if what.startswith("/"):
        return inode_key(await _resolve(what, store, troubles))
    raise UsageError(f"{what!r} is no inode, shard, absolute path or key; see --help")


async def _resolve(path: str, store: RawStore, troubles: list[str]) -> int:
    """The inode at a path, by the newest entries that can be read."""
    ino = ROOT_INO
    for part in filter(None, path.split("/")):
        entry = None
        key = entry_key(ino, part.encode("utf-8", "surrogateescape"))
        for version in await store.versions(key, troubles):
            if version.value == TOMBSTONE:
                break
            try:
                entry = decode_entry(version.value[1:])
            except (CorruptionError, DeviceError) as error:
                troubles.append(str(error))
                continue
            break
        if entry is None:
            raise UsageError(f"there is no {path}, or what names it cannot be read")
        ino = entry.ino
    return ino
