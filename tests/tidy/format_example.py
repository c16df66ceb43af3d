"""The store of the worked example in docs/format.md: made anew, and its frames with annotations.

Role: `make_image` makes the same bytes every time. `render` writes each frame of the example field
by field. Run as a module, it prints the example's part of the document:

    python -m tests.tidy.format_example

Not here: reading the example (test_format_example.py does so without any code of the package).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import trio

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine import Store, StoreOptions, format_device, plan
from shardfs.engine.framing import Frame, decode_frame, scan_frames
from shardfs.engine.layout import (
    BLOCK_HEADER,
    DELTA_HEADER,
    EXTENT_ENTRY,
    FRAME_HEADER,
    LOCATOR,
    PIECE,
    RIDER,
    SHARD_HEADER,
    SUPERBLOCK_RECORD,
    TAIL,
    Kind,
    Table,
)

EXTENT_BYTES = 65536
DEVICE_BYTES = 24 * EXTENT_BYTES
STORE_UUID = uuid.UUID(bytes=bytes(range(0x10, 0x20)))
CREATED_NS = 1_700_000_000 * 10**9
LABEL = "example"
KEY = b"greeting"
VALUE = b"shardfs " * 40
BYTES_PER_LINE = 16


async def make_image() -> bytes:
    """The device's content after mkfs, one put, one sync and a close in order."""
    device = SimulatedDevice(DEVICE_BYTES)
    identity = plan(
        DEVICE_BYTES, 512, label=LABEL, extent_bytes=EXTENT_BYTES, store_uuid=STORE_UUID
    )
    await format_device(device, dataclasses.replace(identity, created_ns=CREATED_NS))
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        await store.sync(await store.put(KEY, VALUE))
    return device.image()


class Part(NamedTuple):
    """A few bytes and what they mean."""

    data: bytes
    meaning: str


class Example(NamedTuple):
    """One frame of the example: its name in the document, and its bytes by field."""

    name: str
    offset: int
    parts: list[Part]

    @property
    def data(self) -> bytes:
        """The frame's bytes."""
        return b"".join(part.data for part in self.parts)


class _Cursor:
    """Takes a frame's bytes apart from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0
        self.parts: list[Part] = []

    def take(self, length: int, meaning: str) -> bytes:
        """The next bytes, noted with their meaning."""
        data = self._data[self.at : self.at + length]
        self.parts.append(Part(data, meaning))
        self.at += length
        return data

    def table(self, table: Table, prefix: str = "") -> dict[str, Any]:
        """The next bytes as the fields of a table."""
        values = table.unpack(self._data, self.at)
        fields = {}
        for (_, size, name, _), value in zip(table.describe(), values, strict=True):
            self.take(size, f"{prefix}{name} = {_words(value)}")
            fields[name] = value
        return fields

    def row(self, table: Table, prefix: str) -> None:
        """The next bytes as one line with all fields of a table."""
        values = table.unpack(self._data, self.at)
        names = [name for name, _, _ in table.fields]
        pairs = (f"{n} {_words(v)}" for n, v in zip(names, values, strict=True))
        self.take(table.size, prefix + ", ".join(pairs))

    def locator(self, prefix: str) -> None:
        """The next bytes as a locator of a frame of one granule."""
        self.table(LOCATOR, prefix)
        self.take(8, f"{prefix}digest of granule 0")

    def finish(self, name: str, offset: int) -> Example:
        """The example, once all bytes are taken."""
        assert self.at == len(self._data), f"{name}: {len(self._data) - self.at} bytes are left"
        return Example(name, offset, self.parts)


def _words(value: object) -> str:
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        return f'"{text.decode()}"' if text.isalnum() else value.hex()
    assert isinstance(value, int)
    return hex(value) if value >= 1 << 32 and value != CREATED_NS else str(value)


def examples(image: bytes) -> list[Example]:
    """The frames that the document shows: the last superblock record, the data, the delta."""
    frames = {frame.kind: (offset, frame) for offset, frame, _ in scan_frames(image[:EXTENT_BYTES])}
    found = [_superblock(image, *frames[Kind.SUPERBLOCK])]
    makers = {Kind.DATA: _data, Kind.DELTA: _delta}
    for offset, frame, _ in scan_frames(image):
        if frame.kind in makers:
            found.append(makers[frame.kind](image, offset, frame))
    return sorted(found, key=lambda each: ["superblock", "data", "delta"].index(each.name))


def _begin(image: bytes, offset: int, frame: Frame) -> _Cursor:
    decode_frame(image, offset)
    cursor = _Cursor(image[offset : offset + frame.total_bytes])
    cursor.table(FRAME_HEADER)
    if frame.owner:
        cursor.take(len(frame.owner), f"owner key {_words(frame.owner)}")
    cursor.take(8, "digest of granule 0")
    return cursor


def _pad(cursor: _Cursor, frame: Frame) -> None:
    if cursor.at < frame.total_bytes:
        cursor.take(frame.total_bytes - cursor.at, "zeros up to a multiple of 8")


def _superblock(image: bytes, offset: int, frame: Frame) -> Example:
    cursor = _begin(image, offset, frame)
    record = cursor.table(SUPERBLOCK_RECORD)
    assert not record["manifest_bytes"]
    for _ in range(record["entry_count"]):
        cursor.row(EXTENT_ENTRY, "")
    _pad(cursor, frame)
    return cursor.finish("superblock", offset)


def _data(image: bytes, offset: int, frame: Frame) -> Example:
    cursor = _begin(image, offset, frame)
    cursor.take(frame.payload_bytes, "the payload: bytes 0 to 319 of the shard")
    _pad(cursor, frame)
    return cursor.finish("data", offset)


def _delta(image: bytes, offset: int, frame: Frame) -> Example:
    cursor = _begin(image, offset, frame)
    delta = cursor.table(DELTA_HEADER)
    for _ in range(delta["tail_count"]):
        cursor.table(TAIL, "tail: ")
    for _ in range(delta["rider_count"]):
        cursor.table(RIDER, "rider: ")
    count = cursor.table(BLOCK_HEADER, "entry block: ")["entry_count"]
    assert count == 1
    key_bytes = int.from_bytes(cursor.take(2, f"length of key 0 = {len(KEY)}"), "little")
    value_bytes = int.from_bytes(image[offset + cursor.at : offset + cursor.at + 4], "little")
    cursor.take(4, f"length of value 0 = {value_bytes}")
    cursor.take(key_bytes, f"key 0 {_words(KEY)}")
    cursor.take(1, "value 0: tag = 2 (SHARD)")
    cursor.table(SHARD_HEADER, "shard: ")
    cursor.locator("locator: ")
    cursor.table(PIECE, "piece: ")
    _pad(cursor, frame)
    return cursor.finish("delta", offset)


def render_block(example: Example) -> list[str]:
    """The lines of an example: offset within the frame, bytes, meaning."""
    return list(_lines(example.parts))


def _lines(parts: Iterable[Part]) -> Iterator[str]:
    at = 0
    for part in parts:
        for start in range(0, len(part.data), BYTES_PER_LINE):
            piece = part.data[start : start + BYTES_PER_LINE]
            meaning = part.meaning if start == 0 else ""
            yield f"{at + start:04x}  {piece.hex():<{2 * BYTES_PER_LINE}}  {meaning}".rstrip()
        at += len(part.data)


def render(image: bytes) -> str:
    """The example's part of docs/format.md."""
    titles = {
        "superblock": "The last record of the first superblock copy",
        "data": "The data",
        "delta": "The delta",
    }
    text = ""
    for example in examples(image):
        where = f"device byte {example.offset}: extent {example.offset // EXTENT_BYTES}"
        where += f", byte {example.offset % EXTENT_BYTES}; {len(example.data)} bytes"
        text += f"**{titles[example.name]}** ({where})\n\n<!-- example: {example.name} -->\n"
        text += "```\n" + "\n".join(render_block(example)) + "\n```\n\n"
    return text.rstrip() + "\n"


if __name__ == "__main__":
    print(render(trio.run(make_image)), end="")
