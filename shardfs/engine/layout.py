"""Every structure on the device, as tables: the only place that packs engine bytes.

Role: field names, widths and order of each on-disk structure, shared by writer and reader.
docs/format.md describes the same tables in prose and a test holds the two together.

Invariants:
    I1. All integers are little-endian; there is no implicit padding.
    I2. Numbers that are stored (kinds, states, streams, tags, flags) are never renumbered or
        reused: old disks carry them.
    I3. Decoding any bytes returns values or raises CorruptionError, nothing else.

Not here: what the values mean together (framing, superblock, lsm), and the file system's
records, which the engine stores as opaque bytes (fuse/records.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final

from shardfs.errors import CorruptionError

FORMAT_VERSION: Final = 5

FRAME_MAGIC: Final = b"SHF1"
INCARNATION_SHIFT: Final = 40
"""A sequence number is incarnation << 40 | counter."""

FEATURES_COMPATIBLE: Final = 0
FEATURES_READ_ONLY_COMPATIBLE: Final = 0
FEATURES_INCOMPATIBLE: Final = 0
"""Feature bits this build knows; none is defined in format 2."""

Bytes = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a frame holds. Stored on disk: never renumber."""

    SUPERBLOCK = 1
    DATA = 2
    DELTA = 3
    RUN_BLOCK = 4
    RUN_INDEX = 5
    MANIFEST = 6


class ExtentState(IntEnum):
    """What an extent is used for. Stored on disk: never renumber."""

    FREE = 0
    OPEN = 1
    SEALED = 2
    SUPERBLOCK = 3


class Stream(IntEnum):
    """Who writes into an extent. Stored on disk: never renumber."""

    NONE = 0
    DATA = 1
    SURVIVORS = 2
    RUNS = 3
    META = 4
    HOT = 5


class Tag(IntEnum):
    """First byte of an entry's value in the tree. Stored on disk: never renumber."""

    TOMBSTONE = 0
    RECORD = 1
    SHARD = 2


class RecordKind(IntEnum):
    """What a superblock record holds. Stored on disk: never renumber."""

    SNAPSHOT = 1
    CHANGE = 2


DAMAGED_EXTENT: Final = 0xFFFFFFFF
"""A locator with this extent number names no chunk: what stood there was damaged, and `fsck
--repair` has recorded that. Reading it is an error, never zeros."""

SUPERBLOCK_CLEAN: Final = 1
"""Superblock record flag: the store was closed in order; nothing was written after this record."""


class Table:
    """One fixed-size structure: named fields in order.

    Args:
        name: the name used in docs/format.md and in error messages.
        fields: (field name, struct code, meaning) in order on disk.
    """

    def __init__(self, name: str, fields: tuple[tuple[str, str, str], ...]) -> None:
        self.name = name
        self.fields = fields
        self._struct = struct.Struct("<" + "".join(code for _, code, _ in fields))
        self.size = self._struct.size
        self.pack = self._struct.pack

    def unpack(self, data: Bytes, offset: int = 0) -> tuple[Any, ...]:
        """Field values of the structure at `offset`.

        Raises:
            CorruptionError: the bytes end before the structure does.
        """
        if offset < 0 or offset + self.size > len(data):
            raise CorruptionError(f"{self.name} needs {self.size} bytes at {offset}, cut short")
        return self._struct.unpack_from(data, offset)

    def unpack_many(self, data: Bytes, offset: int, count: int) -> Iterator[tuple[Any, ...]]:
        """Field values of `count` structures that follow each other from `offset` on.

        Raises:
            CorruptionError: the bytes end before the last structure does.
        """
        end = offset + count * self.size
        if offset < 0 or end > len(data):
            raise CorruptionError(f"{count} times {self.name} at {offset} is cut short")
        return self._struct.iter_unpack(memoryview(data)[offset:end])

    def describe(self) -> Iterator[tuple[int, int, str, str]]:
        """(offset, size, field name, meaning) of each field, in order."""
        offset = 0
        for name, code, meaning in self.fields:
            size = struct.calcsize("<" + code)
            yield offset, size, name, meaning
            offset += size


FRAME_HEADER: Final = Table(
    "frame header",
    (
        ("magic", "4s", 'the bytes "SHF1"'),
        ("kind", "B", "what the frame holds (Kind)"),
        ("flags", "B", "zero in format 1"),
        ("key_bytes", "H", "length of the owner key that follows the header"),
        ("payload_bytes", "I", "length of the payload"),
        ("epoch", "I", "epoch of the extent when the frame was written"),
        ("store_id", "Q", "identifies the store; old frames of another store are not taken"),
        ("sequence", "Q", "unique and rising: incarnation << 40 | counter"),
        ("owner_offset", "Q", "offset of the payload within the owner, bytes"),
        ("checksum", "Q", "xxh3-64 of the header up to here, the key and the checksum table"),
    ),
)

LOCATOR: Final = Table(
    "locator",
    (
        ("extent", "I", "extent number"),
        ("epoch", "I", "epoch the extent must have"),
        ("offset", "I", "start of the frame within the extent, bytes"),
        ("length", "I", "payload length, bytes"),
        ("sequence", "Q", "sequence number of the frame"),
        ("key_bytes", "H", "length of the frame's owner key"),
    ),
)
"""Followed by one 8-byte xxh3-64 digest (big-endian) for each granule of the payload."""

PIECE: Final = Table(
    "piece",
    (
        ("start", "I", "first byte within the shard"),
        ("length", "I", "bytes taken from the chunk"),
        ("skip", "I", "first byte taken within the chunk's payload"),
        ("chunk", "I", "which of the shard's locators names the chunk, from 0"),
    ),
)

SHARD_HEADER: Final = Table(
    "shard",
    (
        ("piece_count", "I", "number of pieces"),
        ("chunk_count", "I", "number of chunks that they are taken from"),
    ),
)
"""Followed by the locators of the chunks, in the order of their first use, and the pieces."""

BLOCK_HEADER: Final = Table(
    "entry block", (("entry_count", "I", "number of entries in the block"),)
)
"""Followed by key lengths (u16 each), value lengths (u32 each), the keys, the values."""

RUN_INDEX_HEADER: Final = Table(
    "run index",
    (
        ("run_id", "Q", "sorted run this segment belongs to"),
        ("entry_count", "Q", "entries in the segment"),
        ("block_count", "I", "blocks in the segment"),
        ("filter_bytes", "I", "length of the Bloom filter at the end"),
    ),
)
"""Followed by block_count times (block reference, first key), then the filter."""

BLOCK_REFERENCE: Final = Table(
    "block reference", (("key_bytes", "H", "length of the block's first key"),)
)
"""Followed by the key and the block's locator."""

MANIFEST_HEADER: Final = Table(
    "manifest",
    (
        ("checkpoint", "Q", "number of the last delta whose entries are in the runs"),
        ("segment_count", "I", "segments that follow"),
        ("usage_count", "I", "usage entries that follow the segments"),
    ),
)

SEGMENT: Final = Table(
    "segment",
    (
        ("run_id", "Q", "sorted run; a higher id is newer within a level"),
        ("level", "B", "level of the run, 0 newest"),
        ("entry_count", "Q", "entries, tombstones and those below the first key included"),
        ("tombstone_count", "Q", "of these, tombstones"),
        ("total_bytes", "Q", "bytes of its frames on the device"),
        ("first_key_bytes", "H", "length of the first key that counts"),
        ("last_key_bytes", "H", "length of the last key"),
    ),
)
"""Followed by the first key, the last key, and the locator of the run index."""

USAGE: Final = Table(
    "usage",
    (
        ("extent", "I", "extent number"),
        ("epoch", "I", "epoch the figure holds for"),
        ("live_bytes", "Q", "what the pieces in it made live at the checkpoint"),
    ),
)

DELTA_HEADER: Final = Table(
    "delta",
    (
        ("number", "Q", "rises by one from delta to delta"),
        ("part", "H", "this part, from 0"),
        ("parts", "H", "parts of this delta; all or none count"),
        ("durable", "Q", "every delta up to this number was durable when this was written"),
        ("tail_count", "I", "tail entries that follow"),
        ("rider_count", "I", "rider entries that follow the tails"),
    ),
)
"""Followed by tails, riders, and one entry block."""

TAIL: Final = Table(
    "tail",
    (
        ("extent", "I", "extent number"),
        ("epoch", "I", "its epoch"),
        ("write_pointer", "I", "bytes; no frame referenced so far lies at or beyond it"),
        ("stream", "B", "stream that owns the extent"),
        ("live_change", "q", "change of the extent's live bytes since the previous delta"),
    ),
)

RIDER: Final = Table(
    "rider",
    (
        ("extent", "I", "extent of a data frame issued together with the delta"),
        ("epoch", "I", "its epoch"),
        ("offset", "I", "start of the frame within the extent"),
        ("sequence", "Q", "sequence number of the frame"),
    ),
)

SUPERBLOCK_RECORD: Final = Table(
    "superblock record",
    (
        ("record_kind", "B", "snapshot of all extents, or change of some (RecordKind)"),
        ("flags", "B", "bit 0: closed in order"),
        ("format_version", "H", "format of the whole device"),
        ("sector_bytes", "I", "logical sector of the device at mkfs"),
        ("compatible", "Q", "feature bits anyone may ignore"),
        ("read_only_compatible", "Q", "feature bits that allow reading only, when unknown"),
        ("incompatible", "Q", "feature bits that forbid opening, when unknown"),
        ("uuid", "16s", "identity of the store"),
        ("label", "64s", "UTF-8, zero-padded"),
        ("device_bytes", "Q", "size of the store; the device may be larger"),
        ("extent_bytes", "I", "size of an extent"),
        ("extent_count", "I", "number of extents"),
        ("chunk_bytes_max", "I", "largest payload of a frame"),
        ("created_ns", "Q", "time of mkfs, nanoseconds since 1970"),
        ("record_number", "Q", "rises by one from record to record"),
        ("incarnation", "I", "rises by one at each writable open"),
        ("log_extent", "I", "extent where reading the delta log starts"),
        ("log_offset", "I", "byte in that extent where reading starts"),
        ("checkpoint", "Q", "number of the last delta that the manifest covers"),
        ("durable_delta", "Q", "every delta up to this number is durable"),
        ("manifest_bytes", "H", "length of the manifest's locator, 0 for an empty tree"),
        ("entry_count", "I", "extent entries that follow the locator"),
    ),
)

EXTENT_ENTRY: Final = Table(
    "extent entry",
    (
        ("extent", "I", "extent number"),
        ("state", "B", "ExtentState"),
        ("stream", "B", "Stream"),
        ("epoch", "I", "rises by one at each reset"),
        ("write_pointer", "I", "bytes; no referenced frame lies at or beyond it"),
        ("order", "Q", "extents of a stream were opened in this order"),
    ),
)

TABLES: Final = (
    FRAME_HEADER,
    LOCATOR,
    PIECE,
    SHARD_HEADER,
    BLOCK_HEADER,
    RUN_INDEX_HEADER,
    BLOCK_REFERENCE,
    MANIFEST_HEADER,
    SEGMENT,
    USAGE,
    DELTA_HEADER,
    TAIL,
    RIDER,
    SUPERBLOCK_RECORD,
    EXTENT_ENTRY,
)
"""Every structure of the engine, in the order of docs/format.md."""


def pack_lengths(lengths: list[int], code: str) -> bytes:
    """A plain array of unsigned integers; `code` is "H" (16 bits) or "I" (32 bits)."""
    return struct.pack(f"<{len(lengths)}{code}", *lengths)


def unpack_lengths(data: Bytes, offset: int, count: int, code: str) -> tuple[tuple[int, ...], int]:
    """An array written by pack_lengths, and the offset behind it.

    Raises:
        CorruptionError: the bytes end before the array does.
    """
    width = 2 if code == "H" else 4
    end = offset + count * width
    if count < 0 or end > len(data):
        raise CorruptionError(f"an array of {count} lengths at {offset} is cut short")
    return struct.unpack_from(f"<{count}{code}", data, offset), end
