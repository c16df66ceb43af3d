"""Identity, feature flags, tree root and soft write pointers: the log that opening starts from.

Role: two extents at fixed places, the first two of the device, hold the same log of records.
The first record of a log is a snapshot of every extent's state; each further one names what has
changed. A log that has grown long is started afresh: reset, snapshot, go on. The two copies are
never reset at the same time, so one whole log exists at every moment.

Invariants:
    I1. Records are only appended; sequence numbers rise within a log, so that what an earlier
        log left behind the newest record is never read as part of it.
    I2. Before a copy is reset, the other copy holds everything persistently.
    I3. A record says only what is already allowed to be true after a crash: callers put a
        change in only when what it depends on is persistent.

Ordering: a record counts once it is whole in either copy; `next_record` is persistent once it
is flushed in both.

Not here: choosing what to record (store.py), opening a damaged device (recovery.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from shardfs import limits
from shardfs.engine.dependency import PERSISTENT, Dependency, all_of
from shardfs.engine.device import Device
from shardfs.engine.framing import (
    decode_frame,
    encode_head,
    granule_digests,
    head_bytes,
    is_cut_short,
)
from shardfs.engine.layout import (
    EXTENT_ENTRY,
    FEATURES_COMPATIBLE,
    FEATURES_INCOMPATIBLE,
    FEATURES_READ_ONLY_COMPATIBLE,
    FORMAT_VERSION,
    FRAME_MAGIC,
    LOCATOR,
    SUPERBLOCK_CLEAN,
    SUPERBLOCK_RECORD,
    USAGE,
    Bytes,
    ExtentState,
    Kind,
    RecordKind,
    Stream,
)
from shardfs.engine.pieces import Locator, decode_locator, encode_locator
from shardfs.engine.scheduler import Scheduler
from shardfs.errors import CorruptionError, DeviceError, IncompatibleError

_RECORD_KINDS = frozenset(map(int, RecordKind))
_EXTENT_STATES = frozenset(map(int, ExtentState))
_STREAMS = frozenset(map(int, Stream))
_MANIFEST_LOCATOR_BYTES_MAX = LOCATOR.size + 8 * (limits.CHUNK_BYTES_MAX // limits.GRANULE_BYTES)


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


@dataclass(slots=True)
class CopyState:
    """What one copy of the superblock log holds."""

    start: int
    identity: Identity | None = None
    last: Record | None = None
    entries: dict[int, ExtentEntry] = field(default_factory=dict)
    end: int = 0
    trouble: str = ""
    has_magic: bool = False
    """No record in it counts, but something looks like one: a store was here."""
    error: DeviceError | None = None


def encode_record(identity: Identity, record: Record) -> bytes:
    """The payload of a superblock frame."""
    root = record.root
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
        len(record.entries),
    )
    return head + manifest + b"".join(EXTENT_ENTRY.pack(*entry) for entry in record.entries)


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


async def read_copy(device: Device, start: int) -> CopyState:
    """Read one copy of the log, from its snapshot to its last whole record.

    Reads at most limits.SUPERBLOCK_LOG_BYTES_MAX and one record more.

    Raises:
        IncompatibleError: a format version or feature this build must not touch.
        DeviceError: the device could not be read.
    """
    copy = CopyState(start)
    sequence = -1
    data = b""
    step = 16 * limits.BLOCK_BYTES
    at = 0
    while True:
        found = False
        try:
            # Behind a fresh log there may be records of an earlier store, with higher numbers.
            store_id = copy.identity.store_id if copy.identity is not None else None
            frame, payload = decode_frame(data, at, store_id=store_id)
            found = frame.kind is Kind.SUPERBLOCK and frame.sequence > sequence
            if found:
                identity, record = decode_record(payload)
        except CorruptionError as error:
            more = min(step, device.size_bytes - start - len(data))
            if more > 0 and is_cut_short(data, at):
                data += bytes(await device.read(start + len(data), more))
                step *= 2
                continue
            if copy.last is None:
                copy.trouble, copy.has_magic = str(error), _has_record(data)
            return copy
        if not found or (copy.last is None and not record.snapshot):
            if copy.last is None:
                copy.trouble = "it does not begin with a snapshot"
                copy.has_magic = _has_record(data)
            return copy
        if record.snapshot:
            copy.entries.clear()
        copy.identity, copy.last = identity, record
        copy.entries.update((entry.extent, entry) for entry in record.entries)
        sequence = frame.sequence
        at = copy.end = _round_up(at + frame.total_bytes)


def _has_record(data: bytes) -> bool:
    start = FRAME_MAGIC + bytes([Kind.SUPERBLOCK])
    return any(data.startswith(start, offset) for offset in range(0, len(data), limits.BLOCK_BYTES))


def _round_up(length: int) -> int:
    return -(-length // limits.BLOCK_BYTES) * limits.BLOCK_BYTES


def record_bytes_max(extent_count: int) -> int:
    """Bytes of the largest record of a store with this many extents."""
    payload = SUPERBLOCK_RECORD.size + _MANIFEST_LOCATOR_BYTES_MAX
    payload += extent_count * EXTENT_ENTRY.size
    return _round_up(head_bytes(0, payload) + payload)


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


class Superblock:
    """The writer of the log.

    Args:
        identity: of the store; repeated in every record.
        scheduler: where records are submitted.
        device: for resets of the two superblock extents.
        incarnation: of this open; part of every sequence number.
        record_number: of the last record on the device.
        sequence: gives the next frame sequence number.
    """

    def __init__(
        self,
        identity: Identity,
        scheduler: Scheduler,
        device: Device,
        incarnation: int,
        record_number: int,
        sequence: Iterator[int],
    ) -> None:
        self.identity = identity
        self.incarnation = incarnation
        self._scheduler = scheduler
        self._device = device
        self._number = record_number
        self._sequence = sequence
        self._ends = [0, 0]
        self._next = Dependency()
        self._log_bytes_max = log_bytes_max(identity.extent_bytes)
        self.resize(identity)

    def next_record(self) -> Dependency:
        """Persistent once the next record written is, in both copies."""
        return self._next

    def resize(self, identity: Identity) -> None:
        """The records to come say this identity: of the same store, with more or fewer extents.

        Requires: `start_logs` is next, so that no log holds records of two sizes.
        """
        self._record_bytes_max = record_bytes_max(identity.extent_count)
        assert 2 * self._record_bytes_max <= self._log_bytes_max, "a snapshot must leave room"
        self.identity = identity

    async def start_logs(self, root: Root, entries: Sequence[ExtentEntry], first: int) -> None:
        """Start both logs afresh, one after the other, beginning with copy `first`.

        Requires: the other copy is whole, or both are void (mkfs); nothing changes meanwhile.
        Durable when: returned.
        """
        for copy in (first, 1 - first):
            await self._start_log(copy, root, entries)

    async def write(
        self,
        root: Callable[[], Root],
        changed: Callable[[], Sequence[ExtentEntry]],
        entries: Callable[[], Sequence[ExtentEntry]],
        *,
        clean: bool = False,
    ) -> None:
        """Append a record to both copies; not flushed. Requires: one caller at a time.

        Args:
            root: gives the tree's root; asked at the moment the record is made.
            changed: gives the extents that differ from the last record, likewise.
            entries: gives all extents, for a log that must be started afresh.
            clean: this is the last record of an orderly close.

        Durable when: `next_record()`, as it stood before the call, is persistent.
        Checkpoints: only when a log is started afresh.
        """
        for copy in (0, 1):
            if self._ends[copy] + self._record_bytes_max > self._log_bytes_max:
                # Both copies must be whole before either is given up (I2).
                await self._scheduler.write_out()
                await self._scheduler.flush()
                await self._start_log(copy, root(), entries())
        done, self._next = self._next, Dependency()
        self._number += 1
        payload = self._payload(root(), changed(), snapshot=False, clean=clean)
        both = all_of([self._submit(copy, payload) for copy in (0, 1)])
        both.on_settled(lambda: done.fail(both.failure) if both.failure else done.resolve())

    async def _start_log(self, copy: int, root: Root, entries: Sequence[ExtentEntry]) -> None:
        size = self.identity.extent_bytes
        await self._device.reset(self.identity.extent_offset(copy), size)
        self._ends[copy] = 0
        self._number += 1
        payload = self._payload(root, entries, snapshot=True, clean=False)
        await self._scheduler.settle(self._submit(copy, payload))

    def _payload(
        self, root: Root, entries: Sequence[ExtentEntry], *, snapshot: bool, clean: bool
    ) -> bytes:
        record = Record(snapshot, clean, self._number, self.incarnation, root, tuple(entries))
        return encode_record(self.identity, record)

    def _submit(self, copy: int, payload: bytes) -> Dependency:
        head = encode_head(
            Kind.SUPERBLOCK,
            self.identity.store_id,
            0,
            next(self._sequence),
            b"",
            self._number,
            len(payload),
            granule_digests(payload),
        )
        length = _round_up(len(head) + len(payload))
        padding = bytes(length - len(head) - len(payload))
        offset = self.identity.extent_offset(copy) + self._ends[copy]
        self._ends[copy] += length
        persistent = Dependency()
        self._scheduler.submit(
            copy, offset, (head, payload, padding), length, PERSISTENT, persistent, _nothing
        )
        return persistent


def _nothing() -> None:
    """Superblock records are not read back while the store is open."""
