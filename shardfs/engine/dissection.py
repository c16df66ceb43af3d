"""Takes any structure of the format apart, field by field, also a damaged one.

Role: names the bytes of a frame as docs/format.md does. What does not hold is said beside the
fields, and the rest is gone on with as far as the bytes allow: nothing here refuses.

Invariants:
    I1. Any bytes give fields and troubles; nothing is raised, and memory is bounded by
        FIELDS_MAX and TROUBLES_MAX.
    I2. Fields stand in order, each with the bytes that it was read from.

Not here: records of the file system (fuse/record_dissection.py), where bytes come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple

import xxhash

from shardfs import limits
from shardfs.engine.framing import digests_by
from shardfs.engine.layout import (
    BLOCK_HEADER,
    BLOCK_REFERENCE,
    DELTA_HEADER,
    EXTENT_ENTRY,
    FRAME_HEADER,
    FRAME_MAGIC,
    LOCATOR,
    MANIFEST_HEADER,
    PIECE,
    RIDER,
    RUN_INDEX_HEADER,
    SEGMENT,
    SHARD_HEADER,
    SUPERBLOCK_RECORD,
    TAIL,
    USAGE,
    ExtentState,
    Kind,
    RecordKind,
    Stream,
    Table,
    Tag,
    unpack_lengths,
)
from shardfs.engine.pieces import DIGEST_BYTES, granule_bytes, granule_count
from shardfs.errors import CorruptionError

FIELDS_MAX: Final = 20_000
TROUBLES_MAX: Final = 200
FRAME_BYTES_MAX: Final = (
    FRAME_HEADER.size
    + limits.KEY_BYTES_MAX
    + DIGEST_BYTES * granule_count(limits.CHUNK_BYTES_MAX)
    + limits.CHUNK_BYTES_MAX
)
_ENUMS: Final[dict[tuple[str, str], type[IntEnum]]] = {
    ("frame header", "kind"): Kind,
    ("superblock record", "record_kind"): RecordKind,
    ("extent entry", "state"): ExtentState,
    ("extent entry", "stream"): Stream,
    ("tail", "stream"): Stream,
}
_NUMBERS_IN_HEX: Final = frozenset({"store_id", "sequence", "checksum", "order"})


class Field(NamedTuple):
    """One field: bytes [offset, offset + length), counted from the first byte taken apart.

    structure: whose field it is, and which of several: "piece 3".
    value: for people.
    """

    offset: int
    length: int
    structure: str
    name: str
    value: str


KeyText = Callable[[bytes], str]
EntryParts = Callable[["Dissection", bytes, int, int], None]
"""(dissection, key, start, end): adds the fields of a record of that key."""
PayloadParts = Callable[["Dissection", bytes], None]
"""(dissection, owner key): adds the fields of a data frame's payload, the rest of the bytes."""


def _no_parts(dissection: Dissection, key: bytes, start: int, end: int) -> None:
    dissection.raw(start, end, "record", "bytes")


def _plain_payload(dissection: Dissection, key: bytes) -> None:
    dissection.raw(dissection.at, len(dissection.data), "frame", "payload")
    dissection.at = len(dissection.data)


@dataclass
class Dissection:
    """What was found of one structure.

    data: all of its bytes.
    key_text: says what a key is about.
    entry_parts: takes the record of an entry apart.
    payload_parts: takes the payload of a data frame apart.
    """

    data: bytes
    key_text: KeyText = bytes.hex
    entry_parts: EntryParts = _no_parts
    payload_parts: PayloadParts = _plain_payload
    fields: list[Field] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    at: int = 0
    is_cut: bool = False
    """There is more than FIELDS_MAX and TROUBLES_MAX let in."""

    def trouble(self, text: str) -> None:
        """Something does not hold."""
        if len(self.troubles) >= TROUBLES_MAX:
            self.is_cut = True
        else:
            self.troubles.append(text)

    def add(self, offset: int, length: int, structure: str, name: str, value: str) -> None:
        """One field."""
        if len(self.fields) >= FIELDS_MAX:
            self.is_cut = True
            return
        self.fields.append(Field(offset, length, structure, name, value))

    def raw(self, start: int, end: int, structure: str, name: str) -> None:
        """Bytes without a structure."""
        if start < end:
            self.add(start, end - start, structure, name, f"{end - start} bytes")

    def table(self, table: Table, number: int | None = None) -> dict[str, Any]:
        """The next bytes as a fixed structure.

        Raises:
            CorruptionError: they end before it does; what is left of them is a field.
        """
        name = table.name if number is None else f"{table.name} {number}"
        try:
            values = table.unpack(self.data, self.at)
        except CorruptionError:
            self.raw(self.at, len(self.data), name, "(cut short)")
            self.at = len(self.data)
            raise
        found: dict[str, Any] = {}
        for (offset, size, key, _), value in zip(table.describe(), values, strict=True):
            self.add(self.at + offset, size, name, key, _value_text(table.name, key, value))
            found[key] = value
        self.at += table.size
        return found

    def take(self, length: int, structure: str, name: str, text: KeyText | None = None) -> bytes:
        """The next `length` bytes as one field.

        Raises:
            CorruptionError: there are fewer.
        """
        data = self.data[self.at : self.at + length]
        if len(data) < length:
            self.raw(self.at, len(self.data), structure, f"{name} (cut short)")
            self.at = len(self.data)
            raise CorruptionError(f"{structure}: {name} needs {length} bytes, {len(data)} are left")
        if length:
            self.add(self.at, length, structure, name, text(data) if text else data.hex())
        self.at += length
        return data

    def locator(self, structure: str) -> dict[str, Any]:
        """The next bytes as a locator, its digests as one field.

        Raises:
            CorruptionError: they end before it does.
        """
        start = self.at
        values = LOCATOR.unpack(self.data, start)
        for (offset, size, key, _), value in zip(LOCATOR.describe(), values, strict=True):
            self.add(
                start + offset, size, f"{structure}: locator", key, _value_text("", key, value)
            )
        self.at += LOCATOR.size
        found = dict(zip((name for name, _, _ in LOCATOR.fields), values, strict=True))
        if found["length"] > limits.CHUNK_BYTES_MAX:
            raise CorruptionError(f"{structure}: a locator of a chunk of {found['length']} bytes")
        digests = granule_count(found["length"]) * DIGEST_BYTES
        self.take(digests, f"{structure}: locator", "digests")
        return found


# --- frames -------------------------------------------------------------------------------------


def dissect_frame(dissection: Dissection) -> None:
    """Take a whole frame apart: header, key, digests and, by its kind, the payload."""
    try:
        header = dissection.table(FRAME_HEADER)
        _check_header(dissection, header)
        owner = dissection.take(header["key_bytes"], "frame", "owner key", dissection.key_text)
        digests = granule_count(header["payload_bytes"]) * DIGEST_BYTES
        table = dissection.take(digests, "frame", "digests")
        _check_head(dissection, header)
        start, end = dissection.at, dissection.at + header["payload_bytes"]
        if end > len(dissection.data):
            dissection.trouble(f"the payload is cut short: {len(dissection.data) - start} bytes")
        payload = dissection.data[start:end]
        _check_granules(dissection, payload, table, granule_bytes(header["payload_bytes"]))
    except CorruptionError as error:
        dissection.trouble(str(error))
        return
    part = _PAYLOADS.get(header["kind"])
    whole, dissection.data = dissection.data, dissection.data[: start + len(payload)]
    try:
        if part is not None:
            part(dissection)
        else:
            dissection.payload_parts(dissection, owner)
        if dissection.at < len(dissection.data):
            dissection.raw(dissection.at, len(dissection.data), "frame", "(behind the structure)")
            dissection.trouble(f"{len(dissection.data) - dissection.at} bytes behind the structure")
    except CorruptionError as error:
        dissection.trouble(str(error))
    dissection.data = whole


def _check_header(dissection: Dissection, header: dict[str, Any]) -> None:
    if header["magic"] != FRAME_MAGIC:
        dissection.trouble(f"the magic is {header['magic'].hex()}, not {FRAME_MAGIC.hex()}")
    if header["kind"] not in _PAYLOADS and header["kind"] != Kind.DATA:
        dissection.trouble(f"no frame has the kind {header['kind']}")
    if header["flags"]:
        dissection.trouble(f"the flags are {header['flags']}, not 0")
    if header["key_bytes"] > limits.KEY_BYTES_MAX:
        raise CorruptionError(f"a key of {header['key_bytes']} bytes is impossible")
    if header["payload_bytes"] > limits.CHUNK_BYTES_MAX:
        raise CorruptionError(f"a payload of {header['payload_bytes']} bytes is impossible")


def _check_head(dissection: Dissection, header: dict[str, Any]) -> None:
    covered = FRAME_HEADER.size - DIGEST_BYTES
    data = dissection.data
    found = xxhash.xxh3_64_intdigest(data[:covered] + data[FRAME_HEADER.size : dissection.at])
    if found != header["checksum"]:
        dissection.trouble(
            f"the header checksum does not match: {header['checksum']:#x} is stored, the bytes "
            f"make {found:#x}"
        )


def _check_granules(dissection: Dissection, payload: bytes, table: bytes, granule: int) -> None:
    found = digests_by(payload, granule)
    for at in range(0, len(found), DIGEST_BYTES):
        if found[at : at + DIGEST_BYTES] != table[at : at + DIGEST_BYTES]:
            first = at // DIGEST_BYTES * granule
            last = min(first + granule, len(payload)) - 1
            dissection.trouble(
                f"granule {at // DIGEST_BYTES} (payload bytes {first} to {last}) does not match "
                "its digest"
            )


# --- payloads -----------------------------------------------------------------------------------


def _dissect_superblock(dissection: Dissection) -> None:
    record = dissection.table(SUPERBLOCK_RECORD)
    if record["manifest_bytes"]:
        dissection.locator("manifest")
    for number in range(record["entry_count"]):
        dissection.table(EXTENT_ENTRY, number)


def _dissect_delta(dissection: Dissection) -> None:
    header = dissection.table(DELTA_HEADER)
    if header["part"] >= header["parts"]:
        dissection.trouble(f"part {header['part']} of {header['parts']} is impossible")
    for number in range(header["tail_count"]):
        dissection.table(TAIL, number)
    for number in range(header["rider_count"]):
        dissection.table(RIDER, number)
    _dissect_block(dissection)


def _dissect_block(dissection: Dissection) -> None:
    (count,) = dissection.table(BLOCK_HEADER).values()
    start = dissection.at
    key_lengths, at = unpack_lengths(dissection.data, start, count, "H")
    dissection.raw(start, at, "entry block", f"{count} key lengths")
    value_lengths, end = unpack_lengths(dissection.data, at, count, "I")
    dissection.raw(at, end, "entry block", f"{count} value lengths")
    dissection.at = end
    keys: list[bytes] = []
    for number, length in enumerate(key_lengths):
        key = dissection.take(length, f"entry {number}", "key", dissection.key_text)
        if keys and key <= keys[-1]:
            dissection.trouble(f"entry {number}: its key is not above the one before")
        keys.append(key)
    for number, (key, length) in enumerate(zip(keys, value_lengths, strict=True)):
        end = dissection.at + length
        if end > len(dissection.data):
            raise CorruptionError(f"entry {number}: its value is cut short")
        dissect_value(dissection, key, end, f"entry {number}")
        dissection.at = end


def dissect_value(dissection: Dissection, key: bytes, end: int, name: str) -> None:
    """Take the value of an entry apart, which ends at byte `end`."""
    whole, dissection.data = dissection.data, dissection.data[:end]
    try:
        tag = dissection.take(1, name, "tag", _tag_text)[0]
        if tag == Tag.SHARD:
            _dissect_shard(dissection, name)
        elif tag == Tag.RECORD:
            dissection.entry_parts(dissection, key, dissection.at, end)
            dissection.at = end
        elif tag != Tag.TOMBSTONE:
            dissection.trouble(f"{name}: an unknown tag {tag}")
        if dissection.at < end:
            dissection.raw(dissection.at, end, name, "(behind the value)")
            dissection.trouble(f"{name}: {end - dissection.at} bytes behind the value")
    except CorruptionError as error:
        dissection.trouble(f"{name}: {error}")
    finally:
        dissection.data = whole


def _dissect_shard(dissection: Dissection, name: str) -> None:
    header = dissection.table(SHARD_HEADER)
    for number in range(header["chunk_count"]):
        dissection.locator(f"chunk {number}")
    end = 0
    for number in range(header["piece_count"]):
        piece = dissection.table(PIECE, number)
        if piece["chunk"] >= header["chunk_count"]:
            dissection.trouble(f"{name}: piece {number} names chunk {piece['chunk']}")
        if piece["start"] < end or not piece["length"]:
            dissection.trouble(f"{name}: piece {number} is empty or out of order")
        end = piece["start"] + piece["length"]


def _dissect_index(dissection: Dissection) -> None:
    header = dissection.table(RUN_INDEX_HEADER)
    for number in range(header["block_count"]):
        reference = dissection.table(BLOCK_REFERENCE, number)
        name = f"{BLOCK_REFERENCE.name} {number}"
        dissection.take(reference["key_bytes"], name, "first key", dissection.key_text)
        dissection.locator(name)
    dissection.take(header["filter_bytes"], "run index", "filter", _length_text)


def _dissect_manifest(dissection: Dissection) -> None:
    header = dissection.table(MANIFEST_HEADER)
    for number in range(header["segment_count"]):
        segment = dissection.table(SEGMENT, number)
        name = f"{SEGMENT.name} {number}"
        for key in ("first_key", "last_key"):
            dissection.take(segment[f"{key}_bytes"], name, key, dissection.key_text)
        dissection.locator(name)
    for number in range(header["usage_count"]):
        dissection.table(USAGE, number)


_PAYLOADS: Final[dict[int, Callable[[Dissection], None]]] = {
    Kind.SUPERBLOCK: _dissect_superblock,
    Kind.DELTA: _dissect_delta,
    Kind.RUN_BLOCK: _dissect_block,
    Kind.RUN_INDEX: _dissect_index,
    Kind.MANIFEST: _dissect_manifest,
}


# --- values for people --------------------------------------------------------------------------


def _value_text(table: str, name: str, value: Any) -> str:
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        is_text = text.isascii() and text.decode("ascii", "replace").isprintable()
        return f'"{text.decode()}"' if is_text and name != "uuid" else value.hex()
    enum = _ENUMS.get((table, name))
    if enum is not None:
        try:
            return f"{value} ({enum(value).name})"
        except ValueError:
            return f"{value} (unknown)"
    return f"{value:#x}" if name in _NUMBERS_IN_HEX else str(value)


def _tag_text(data: bytes) -> str:
    try:
        return f"{data[0]} ({Tag(data[0]).name})"
    except ValueError:
        return f"{data[0]} (unknown)"


def _length_text(data: bytes) -> str:
    return f"{len(data)} bytes"
