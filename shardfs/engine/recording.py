"""A recording's bytes: what a device held, each request it was given since, and marks between.

Role: records as values, and their one encoding. A recording is a header and records one behind
the other; the file can end anywhere, as the process that wrote it can. docs/recordings.md has
the same tables in prose.

Invariants:
    I1. The order of records is the order of events on the recorder's one thread: a request that
        is submitted before another one is answered stands before that answer.
    I2. Decoding any bytes yields records or raises CorruptionError, nothing else. What is yielded
        fits together: steps rise by one, answers are to open requests, ranges lie on the device.
    I3. Bytes that end within a record are a recording that was cut short there: no error.
    I4. Stored numbers are never renumbered; another layout gets another RECORDING_VERSION.

Not here: writing while a device works (recorder.py), what marks mean (fuse/promises.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import xxhash

from shardfs.engine.layout import Bytes, Table
from shardfs.errors import CorruptionError
from shardfs.limits import BLOCK_BYTES, QUEUED_BYTES_MAX, SECTOR_BYTES_ALLOWED

RECORDING_MAGIC: Final = b"shardrec"
RECORDING_VERSION: Final = 1
BODY_BYTES_MAX: Final = 2 * QUEUED_BYTES_MAX
"""No record is longer: a damaged length is found out."""
_CHECKSUM_BYTES: Final = 8


class RecordKind(IntEnum):
    """What a record holds. Stored: never renumber."""

    CONTENT = 1
    BEGINNING = 2
    REQUEST = 3
    ANSWER = 4
    MARK = 5


class RequestKind(IntEnum):
    """What a device was asked to do. Stored: never renumber."""

    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    RESET = 4


RECORDING_HEADER: Final = Table(
    "recording header",
    (
        ("magic", "8s", 'the bytes "shardrec"'),
        ("version", "H", "RECORDING_VERSION"),
        ("sector_bytes", "I", "the piece that a power cut leaves old or new"),
        ("device_bytes", "Q", "size of the device"),
        ("checksum", "Q", "xxh3-64 of the header up to here"),
    ),
)
RECORD_HEAD: Final = Table(
    "record head",
    (
        ("kind", "B", "what the record holds (RecordKind)"),
        ("body_bytes", "I", "length of the body that follows the head"),
        ("number", "Q", "rises by one from record to record, from 0"),
        ("checksum", "Q", "xxh3-64 of the head up to here and the body"),
    ),
)
CONTENT: Final = Table("content", (("offset", "Q", "first byte of the content on the device"),))
"""Followed by the content."""
REQUEST: Final = Table(
    "request",
    (
        ("step", "Q", "rises by one from request to request, from 1"),
        ("request_kind", "B", "what is to be done (RequestKind)"),
        ("offset", "Q", "first byte on the device"),
        ("length", "Q", "bytes on the device"),
    ),
)
"""Followed, for a write, by its data."""
ANSWER: Final = Table(
    "answer",
    (
        ("step", "Q", "the request that is answered"),
        ("is_done", "B", "1: done; 0: it failed, and may have been done in part"),
    ),
)
TABLES: Final = (RECORDING_HEADER, RECORD_HEAD, CONTENT, REQUEST, ANSWER)


class Content(NamedTuple):
    """Bytes that the device held durably at the beginning. What no record holds was zero."""

    offset: int
    data: Bytes


class Beginning(NamedTuple):
    """The content is complete; from here on the device is in use."""


class Request(NamedTuple):
    """The device is given something to do. `data` is empty but for a write."""

    step: int
    kind: RequestKind
    offset: int
    length: int
    data: Sequence[Bytes] = ()


class Answer(NamedTuple):
    """The device has answered a request."""

    step: int
    is_done: bool


class Mark(NamedTuple):
    """Something that was true of the users of the device just then."""

    payload: bytes


Record = Content | Beginning | Request | Answer | Mark


@dataclass(frozen=True, slots=True)
class Header:
    """The device that was recorded."""

    device_bytes: int
    sector_bytes: int


# --- encoding -------------------------------------------------------------------------------------


def encode_header(header: Header) -> bytes:
    """The first bytes of a recording."""
    covered = RECORDING_HEADER.pack(
        RECORDING_MAGIC, RECORDING_VERSION, header.sector_bytes, header.device_bytes, 0
    )[:-_CHECKSUM_BYTES]
    return covered + xxhash.xxh3_64_intdigest(covered).to_bytes(_CHECKSUM_BYTES, "little")


def encode_record(number: int, record: Record) -> list[Bytes]:
    """A record as buffers to be written one behind the other; data is not copied."""
    kind, body = _body(record)
    length = sum(map(len, body))
    assert length <= BODY_BYTES_MAX, f"a record of {length} bytes"
    covered = RECORD_HEAD.pack(kind, length, number, 0)[:-_CHECKSUM_BYTES]
    digest = xxhash.xxh3_64(covered)
    for buffer in body:
        digest.update(buffer)
    return [covered + digest.intdigest().to_bytes(_CHECKSUM_BYTES, "little"), *body]


def _body(record: Record) -> tuple[RecordKind, list[Bytes]]:
    match record:
        case Content():
            return RecordKind.CONTENT, [CONTENT.pack(record.offset), record.data]
        case Beginning():
            return RecordKind.BEGINNING, []
        case Request():
            head = REQUEST.pack(record.step, record.kind, record.offset, record.length)
            return RecordKind.REQUEST, [head, *record.data]
        case Answer():
            return RecordKind.ANSWER, [ANSWER.pack(record.step, record.is_done)]
        case Mark():
            return RecordKind.MARK, [record.payload]


# --- decoding -------------------------------------------------------------------------------------


class RecordingReader:
    """Reads a recording.

    Args:
        data: all of its bytes; they must not change while it is read.

    Raises:
        CorruptionError: it does not begin as a recording does.
    """

    def __init__(self, data: Bytes) -> None:
        magic, version, sector_bytes, device_bytes, checksum = RECORDING_HEADER.unpack(data)
        covered = RECORDING_HEADER.size - _CHECKSUM_BYTES
        if magic != RECORDING_MAGIC:
            raise CorruptionError("it does not begin with the word shardrec", "recording")
        if xxhash.xxh3_64_intdigest(data[:covered]) != checksum:
            raise CorruptionError("its header does not match its checksum", "recording")
        if version != RECORDING_VERSION:
            raise CorruptionError(f"its version is {version}, not {RECORDING_VERSION}", "recording")
        if sector_bytes not in SECTOR_BYTES_ALLOWED or device_bytes % BLOCK_BYTES:
            raise CorruptionError("the device it tells of is impossible", "recording")
        self.header = Header(device_bytes, sector_bytes)
        self.is_cut_short = False
        """Known when all records have been read: the last one is not whole."""
        self._data = memoryview(data)
        self._open: set[int] = set()
        self._step = 0

    def records(self) -> Iterator[Record]:
        """Every whole record, in order, data as views of the recording.

        Raises:
            CorruptionError: a record is damaged; those before it were yielded.
        """
        self._open.clear()
        self._step = 0
        position = RECORDING_HEADER.size
        number = 0
        while position + RECORD_HEAD.size <= len(self._data):
            kind, length, stored_number, checksum = RECORD_HEAD.unpack(self._data, position)
            where = f"record {number} of the recording, byte {position}"
            body_at = position + RECORD_HEAD.size
            if stored_number != number or length > BODY_BYTES_MAX:
                raise CorruptionError("its head is damaged", where)
            if body_at + length > len(self._data):
                break
            body = self._data[body_at : body_at + length]
            digest = xxhash.xxh3_64(self._data[position : body_at - _CHECKSUM_BYTES])
            digest.update(body)
            if digest.intdigest() != checksum:
                raise CorruptionError("it does not match its checksum", where)
            yield self._decode(kind, body, where)
            position = body_at + length
            number += 1
        self.is_cut_short = position < len(self._data)

    def _decode(self, kind: int, body: memoryview, where: str) -> Record:
        if kind == RecordKind.CONTENT:
            (offset,) = CONTENT.unpack(body)
            data = body[CONTENT.size :]
            self._require_on_device(offset, len(data), where)
            return Content(offset, data)
        if kind == RecordKind.BEGINNING and not body:
            return Beginning()
        if kind == RecordKind.REQUEST:
            return self._decode_request(body, where)
        if kind == RecordKind.ANSWER and len(body) == ANSWER.size:
            step, is_done = ANSWER.unpack(body)
            if step not in self._open or is_done > 1:
                raise CorruptionError(f"it answers request {step}, which is not open", where)
            self._open.remove(step)
            return Answer(step, bool(is_done))
        if kind == RecordKind.MARK:
            return Mark(bytes(body))
        raise CorruptionError(f"a record of kind {kind} with {len(body)} bytes", where)

    def _decode_request(self, body: memoryview, where: str) -> Request:
        step, kind, offset, length = REQUEST.unpack(body)
        data = body[REQUEST.size :]
        if step != self._step + 1 or kind not in _REQUEST_KINDS:
            raise CorruptionError(f"request {step} of kind {kind} after {self._step}", where)
        if len(data) != (length if kind == RequestKind.WRITE else 0):
            raise CorruptionError(f"{len(data)} bytes of data for a length of {length}", where)
        self._require_on_device(offset, length, where)
        self._step = step
        self._open.add(step)
        return Request(step, RequestKind(kind), offset, length, (data,) if len(data) else ())

    def _require_on_device(self, offset: int, length: int, where: str) -> None:
        if offset % BLOCK_BYTES or length % BLOCK_BYTES:
            raise CorruptionError(f"bytes {offset}+{length} are no blocks", where)
        if offset + length > self.header.device_bytes:
            raise CorruptionError(f"bytes {offset}+{length} lie beyond the device", where)


_REQUEST_KINDS: Final = frozenset(RequestKind)
