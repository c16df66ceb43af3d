"""A record of the superblock log: what it says, and as bytes.

Role: identity, feature flags, tree root and the state of extents, encoded and decoded; and how
large records and their log may become, which bounds the number of extents.

Invariants:
    I1. What decodes is possible: known kinds, states and streams, extents within the store, a
        geometry that mkfs could have chosen.
    I2. Twice the largest record fits into a log (`extent_count_max` sees to it).

Not here: the log that records stand in (superblock.py), the frame around each (framing.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from shardfs import limits
from shardfs.engine.framing import head_bytes
from shardfs.engine.layout import (
    EXTENT_ENTRY,
    FEATURES_COMPATIBLE,
    FEATURES_INCOMPATIBLE,
    FEATURES_READ_ONLY_COMPATIBLE,
    FORMAT_VERSION,
    INCARNATION_SHIFT,
    LOCATOR,
    SUPERBLOCK_CLEAN,
    SUPERBLOCK_RECORD,
    USAGE,
    Bytes,
    ExtentState,
    RecordKind,
    Stream,
)
from shardfs.engine.pieces import (
    DIGEST_BYTES,
    Locator,
    decode_locator,
    encode_locator,
    granule_count,
)
from shardfs.errors import CorruptionError, IncompatibleError

_COUNT_MAX: Final = 1 << 62
_INCARNATION_MAX: Final = (1 << 64 - INCARNATION_SHIFT) - 2
_RECORD_KINDS = frozenset(map(int, RecordKind))
_EXTENT_STATES = frozenset(map(int, ExtentState))
_STREAMS = frozenset(map(int, Stream))
_MANIFEST_LOCATOR_BYTES_MAX = LOCATOR.size + DIGEST_BYTES * granule_count(limits.CHUNK_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Identity:
    """What mkfs decided; the device's size and its extent count change when it is resized.

    Sizes in bytes.
    """

    uuid: uuid.UUID
    label: str
    device_bytes: int
    sector_bytes: int
    extent_bytes: int
    extent_count: int
    chunk_bytes_max: int
    created_ns: int
    format_version: int = FORMAT_VERSION
    compatible: int = FEATURES_COMPATIBLE
    read_only_compatible: int = FEATURES_READ_ONLY_COMPATIBLE
    incompatible: int = FEATURES_INCOMPATIBLE
    store_id: int = field(init=False, repr=False, compare=False)
    """The part of the uuid that every frame carries."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "store_id", int.from_bytes(self.uuid.bytes[:8], "little"))

    def extent_offset(self, extent: int) -> int:
        """First byte of an extent on the device."""
        return extent * self.extent_bytes


class Root(NamedTuple):
    """Where the tree and its delta log are."""

    manifest: Locator | None = None
    log_extent: int = 0
    log_offset: int = 0
    checkpoint: int = 0
    durable_delta: int = 0


class ExtentEntry(NamedTuple):
    """One extent's state as recorded."""

    extent: int
    state: int
    stream: int
    epoch: int
    write_pointer: int
    order: int


class Record(NamedTuple):
    """One superblock record, decoded."""

    snapshot: bool
    clean: bool
    number: int
    incarnation: int
    root: Root
    entries: tuple[ExtentEntry, ...]


def pack_entries(entries: Iterable[ExtentEntry]) -> bytes:
    """Entries as they stand in a record, one behind the other."""
    return b"".join([EXTENT_ENTRY.pack(*entry) for entry in entries])


def encode_record(identity: Identity, record: Record, packed: Bytes | None = None) -> bytes:
    """The payload of a superblock frame.

    Args:
        packed: the entries as `pack_entries` gives them, in place of those of `record`.
    """
    root = record.root
    packed = pack_entries(record.entries) if packed is None else packed
    manifest = encode_locator(root.manifest) if root.manifest is not None else b""
    head = SUPERBLOCK_RECORD.pack(
        RecordKind.SNAPSHOT if record.snapshot else RecordKind.CHANGE,
        SUPERBLOCK_CLEAN if record.clean else 0,
        identity.format_version,
        identity.sector_bytes,
        identity.compatible,
        identity.read_only_compatible,
        identity.incompatible,
        identity.uuid.bytes,
        identity.label.encode(),
        identity.device_bytes,
        identity.extent_bytes,
        identity.extent_count,
        identity.chunk_bytes_max,
        identity.created_ns,
        record.number,
        record.incarnation,
        root.log_extent,
        root.log_offset,
        root.checkpoint,
        root.durable_delta,
        len(manifest),
        len(packed) // EXTENT_ENTRY.size,
    )
    return b"".join((head, manifest, packed))


def decode_record(payload: Bytes) -> tuple[Identity, Record]:
    """Identity and record of a superblock frame's payload.

    Raises:
        IncompatibleError: a format version this build does not know.
        CorruptionError: anything else that is not a record.
    """
    fields = SUPERBLOCK_RECORD.unpack(payload)
    kind, flags, version = fields[:3]
    number, incarnation, log_extent, log_offset, checkpoint, durable = fields[14:20]
    manifest_bytes, entry_count = fields[20:]
    if version != FORMAT_VERSION:
        raise IncompatibleError(
            f"the device has format version {version}, this build knows {FORMAT_VERSION} only; "
            "use a shardfs that matches it"
        )
    at = SUPERBLOCK_RECORD.size
    manifest = None
    if manifest_bytes:
        manifest, end = decode_locator(payload, at)
        if end != at + manifest_bytes:
            raise CorruptionError("the manifest's locator has a wrong length", "superblock")
    at += manifest_bytes
    if len(payload) != at + entry_count * EXTENT_ENTRY.size:
        raise CorruptionError("the record has a wrong length", "superblock")
    entries = tuple(map(ExtentEntry._make, EXTENT_ENTRY.unpack_many(payload, at, entry_count)))
    identity = _decode_identity(*fields[2:14])
    _check_record(identity, kind, entries)
    # Each of them is counted up from here, and has to fit into its field then.
    if max(number, checkpoint, durable) > _COUNT_MAX or incarnation > _INCARNATION_MAX:
        raise CorruptionError("the record counts beyond what any store reaches", "superblock")
    root = Root(manifest, log_extent, log_offset, checkpoint, durable)
    clean = bool(flags & SUPERBLOCK_CLEAN)
    snapshot = kind == RecordKind.SNAPSHOT
    return identity, Record(snapshot, clean, number, incarnation, root, entries)


@lru_cache(maxsize=8)
def _decode_identity(
    version: int,
    sector_bytes: int,
    compatible: int,
    read_only_compatible: int,
    incompatible: int,
    raw_uuid: bytes,
    label: bytes,
    device_bytes: int,
    extent_bytes: int,
    extent_count: int,
    chunk_bytes_max: int,
    created_ns: int,
) -> Identity:
    """The fields that every record of a store repeats, looked at once."""
    power_of_two = extent_bytes & (extent_bytes - 1) == 0
    if (
        not power_of_two
        or not limits.EXTENT_BYTES_MIN <= extent_bytes <= limits.EXTENT_BYTES_MAX
        or not 0 < chunk_bytes_max <= limits.CHUNK_BYTES_MAX
        or extent_count < limits.EXTENT_COUNT_MIN
        or extent_count * extent_bytes > device_bytes
        or sector_bytes not in limits.SECTOR_BYTES_ALLOWED
    ):
        raise CorruptionError("the record's geometry is impossible", "superblock")
    try:
        text = label.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise CorruptionError("the label is not text", "superblock") from error
    return Identity(
        uuid.UUID(bytes=raw_uuid),
        text,
        device_bytes,
        sector_bytes,
        extent_bytes,
        extent_count,
        chunk_bytes_max,
        created_ns,
        version,
        compatible,
        read_only_compatible,
        incompatible,
    )


def _check_record(identity: Identity, kind: int, entries: Sequence[ExtentEntry]) -> None:
    if kind not in _RECORD_KINDS:
        raise CorruptionError(f"a record of unknown kind {kind}", "superblock")
    for extent, state, stream, _, write_pointer, _ in entries:
        if (
            extent >= identity.extent_count
            or write_pointer > identity.extent_bytes
            or state not in _EXTENT_STATES
            or stream not in _STREAMS
        ):
            raise CorruptionError(f"extent entry {extent} is impossible", "superblock")


def record_bytes_max(extent_count: int) -> int:
    """Bytes of the largest record of a store with this many extents."""
    payload = SUPERBLOCK_RECORD.size + _MANIFEST_LOCATOR_BYTES_MAX
    payload += extent_count * EXTENT_ENTRY.size
    return whole_blocks(head_bytes(0, payload) + payload)


def log_bytes_max(extent_bytes: int) -> int:
    """Bytes that a superblock log may grow to."""
    return min(limits.SUPERBLOCK_LOG_BYTES_MAX, extent_bytes)


def extent_count_max(extent_bytes: int, chunk_bytes_max: int) -> int:
    """The most extents of this size that a store may have.

    All of them must fit into half a superblock log, their live bytes into half a manifest.
    """
    least, most = 0, limits.EXTENT_COUNT_MAX
    while least < most:
        count = (least + most + 1) // 2
        snapshot_fits = 2 * record_bytes_max(count) <= log_bytes_max(extent_bytes)
        if snapshot_fits and 2 * count * USAGE.size <= chunk_bytes_max:
            least = count
        else:
            most = count - 1
    return least


def check_features(identity: Identity) -> str:
    """Why the store may only be read (empty: it may be written).

    Raises:
        IncompatibleError: a feature bit that forbids opening at all.
    """
    unknown = identity.incompatible & ~FEATURES_INCOMPATIBLE
    if unknown:
        raise IncompatibleError(
            f"the device uses features this build does not know (bits {unknown:#x}); "
            "use a newer shardfs"
        )
    unknown = identity.read_only_compatible & ~FEATURES_READ_ONLY_COMPATIBLE
    return f"it uses features this build cannot write (bits {unknown:#x})" if unknown else ""


def whole_blocks(length: int) -> int:
    """The length in whole blocks, bytes: a record begins at a block."""
    return -(-length // limits.BLOCK_BYTES) * limits.BLOCK_BYTES
