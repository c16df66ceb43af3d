"""Every decoder of stored bytes, each with valid inputs and its inverse.

Role: the one list of the functions that turn what a disk holds, or a recording, into values.
What checks decoders goes through it: tests/checking/test_decoders.py, scripts/fuzz_decoders and
scripts/prove_decoders. A tidy test fails when a decoder is missing from it.

Invariants, for each decoder and any bytes; `check` raises DecoderFinding when one is broken:
    I1  It returns a value or raises an error that it declares: CorruptionError, and
        IncompatibleError for a superblock of another format.
    I2  A value has an encoding, which decodes again, and encodes to the same bytes. (Not that
        `data` is that encoding: flags that mean nothing may be set in it.)
    I3  Time and memory grow with the length of the input, never with a number in it.

Not here: what the values mean together (fsck), and what decodes no stored bytes (exempt, with
the reason, in the tidy test).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from shardfs.checking.mending import mend_frame, mend_recording
from shardfs.engine.dissection import Field, dissect_frame
from shardfs.engine.extent import Usage
from shardfs.engine.framing import (
    Frame,
    decode_frame,
    decode_head,
    encode_head,
    granule_digests,
    is_cut_short,
    scan_frames,
)
from shardfs.engine.layout import ExtentState, Kind, Stream, unpack_lengths
from shardfs.engine.lsm.delta import Rider, Tail, decode_delta, encode_delta
from shardfs.engine.lsm.entry import (
    Block,
    decode_block,
    decode_value,
    encode_block,
    encode_record,
    encode_shard,
)
from shardfs.engine.lsm.filter import Filter, hash_of
from shardfs.engine.lsm.manifest import Manifest, decode_manifest, encode_manifest
from shardfs.engine.lsm.segment import (
    SegmentIndex,
    SegmentMeta,
    decode_index,
    encode_index,
    encode_reference,
)
from shardfs.engine.mkfs import plan
from shardfs.engine.pieces import (
    Locator,
    Piece,
    Shard,
    decode_locator,
    decode_pieces,
    encode_locator,
    encode_pieces,
)
from shardfs.engine.recording import (
    Answer,
    Beginning,
    Content,
    Header,
    Mark,
    RecordingReader,
    Request,
    RequestKind,
    encode_header,
)
from shardfs.engine.recording import Record as Event
from shardfs.engine.recording import encode_record as encode_recorded
from shardfs.engine.superblock_record import ExtentEntry, Record, Root, decode_record
from shardfs.engine.superblock_record import encode_record as encode_superblock_record
from shardfs.errors import CorruptionError, IncompatibleError, ShardfsError
from shardfs.fuse import keys, listing, promises, records
from shardfs.fuse.record_dissection import dissection_of

LOCATOR: Final = Locator(5, 2, 4096, 40_000, 1 << 41, 9, bytes(range(80)))
PIECES: Final = (Piece(0, 100, 4, LOCATOR), Piece(200, 39_000, 1000, LOCATOR))
ENTRIES: Final = (
    (b"a", encode_record(b"")),
    (b"ab", encode_record(b"value")),
    (b"b", b"\0"),
    (b"c" * 40, encode_shard(PIECES)),
)
IDENTITY: Final = plan(64 << 20, 512, label="bücher", store_uuid=uuid.UUID(int=3))
RECORD: Final = Record(
    True,
    False,
    7,
    2,
    Root(LOCATOR, 4, 8192, 3, 5),
    tuple(ExtentEntry(n, ExtentState.OPEN, Stream.DATA, 1, 4096, n) for n in range(24)),
)
MANIFEST: Final = Manifest(
    9, (SegmentMeta(1, 0, 30, 2, 9999, b"a", b"z", LOCATOR),), (Usage(5, 2, 50_000), Usage(6, 1, 3))
)


class DecoderFinding(AssertionError):
    """A decoder broke a promise; the message has the decoder and the bytes."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder under check.

    Args:
        decode: takes any bytes.
        samples: valid inputs.
        encode: the inverse, or None where a value does not say all that its bytes do.
        refusals: the errors by which it refuses what is not valid.
        mend: puts right checksums into an input, or else hardly any would get further than that.
    """

    decode: Callable[[bytes], Any]
    samples: tuple[bytes, ...]
    encode: Callable[[Any], bytes] | None = None
    refusals: tuple[type[ShardfsError], ...] = (CorruptionError,)
    mend: Callable[[bytes], bytes] = bytes

    def __call__(self, data: bytes) -> Any:
        """Mend and decode."""
        return self.decode(self.mend(data))


def check(name: str, data: bytes) -> bool:
    """I1 and I2 for one input; whether it was taken.

    Raises:
        DecoderFinding: the decoder broke one of them.
    """
    decoder = decoders()[name]
    try:
        try:
            value = decoder(data)
        except decoder.refusals:
            return False
        if decoder.encode is not None:
            encoded = decoder.encode(value)
            again = decoder.encode(decoder.decode(encoded))
            assert again == encoded, f"{encoded.hex()} becomes {again.hex()}"
    except Exception as error:
        raise DecoderFinding(f"{name} on {data.hex() or 'nothing'}: {error!r}") from error
    return True


@cache
def decoders() -> Mapping[str, Decoder]:
    """Every decoder by module and function: `superblock_record.decode_record`.

    What has checksums is there twice, the second time, "..., mended", with those put right.
    """
    return {
        **_frame_decoders(),
        **_engine_decoders(),
        **_tree_decoders(),
        **_file_decoders(),
        **_recording_decoders(),
    }


# --- frames ---------------------------------------------------------------------------------------


def _frame_decoders() -> dict[str, Decoder]:
    frame = _frame(b"owner", bytes(range(100)))
    empty = _frame(b"", b"")
    long = _frame(b"k", bytes(40_000))
    return {
        "framing.decode_head": Decoder(decode_head, (frame, empty, long), _encode_frame_head),
        "framing.decode_head, mended": Decoder(
            decode_head, (frame, empty), _encode_frame_head, mend=mend_frame
        ),
        "framing.decode_frame": Decoder(decode_frame, (frame, empty), _encode_frame),
        "framing.decode_frame, mended": Decoder(
            decode_frame, (frame, empty), _encode_frame, mend=mend_frame
        ),
        "framing.scan_frames": Decoder(
            lambda data: list(scan_frames(data)), (frame + bytes(3) + frame, b"SHF1" * 9)
        ),
        "dissection.dissect_frame": Decoder(_dissect, (frame, empty, long)),
        "dissection.dissect_frame, mended": Decoder(_dissect, (frame, empty), mend=mend_frame),
        "framing.is_cut_short": Decoder(lambda data: is_cut_short(data, 0), (frame, frame[:50])),
    }


def _dissect(data: bytes) -> list[Field]:
    """Which must refuse nothing at all."""
    dissection = dissection_of(data)
    dissect_frame(dissection)
    return dissection.fields


def _frame(owner: bytes, payload: bytes) -> bytes:
    digests = granule_digests(payload)
    return encode_head(Kind.DELTA, 1, 2, 3, owner, 0, len(payload), digests) + payload


def _encode_frame_head(frame: Frame) -> bytes:
    return encode_head(
        frame.kind,
        1,
        frame.epoch,
        frame.sequence,
        frame.owner,
        frame.owner_offset,
        frame.payload_bytes,
        frame.checksums,
    )


def _encode_frame(value: tuple[Frame, memoryview]) -> bytes:
    return _encode_frame_head(value[0]) + bytes(value[1])


# --- what frames hold -----------------------------------------------------------------------------


def _engine_decoders() -> dict[str, Decoder]:
    change = RECORD._replace(root=Root(), entries=(), snapshot=False, clean=True)
    return {
        "superblock_record.decode_record": Decoder(
            decode_record,
            (
                encode_superblock_record(IDENTITY, RECORD),
                encode_superblock_record(IDENTITY, change),
            ),
            lambda value: encode_superblock_record(*value),
            (CorruptionError, IncompatibleError),
        ),
        "pieces.decode_locator": Decoder(
            decode_locator, (encode_locator(LOCATOR),), lambda value: encode_locator(value[0])
        ),
        "pieces.decode_pieces": Decoder(
            decode_pieces, (encode_pieces(PIECES), encode_pieces(())), encode_pieces
        ),
        "layout.unpack_lengths": Decoder(
            lambda data: unpack_lengths(data, 1, data[0] if data else 0, "H"), (b"\2\1\0\5\0",)
        ),
        "delta.decode_delta": Decoder(
            decode_delta,
            tuple(
                payload
                for entries, room in ((ENTRIES, 65536), ((), 65536), (ENTRIES, 400))
                for payload in encode_delta(
                    8,
                    7,
                    [Tail(5, 2, 8192, Stream.DATA, -40)],
                    [Rider(5, 2, 0, 77)],
                    dict(entries),
                    room,
                )
            ),
        ),
    }


def _tree_decoders() -> dict[str, Decoder]:
    key_filter = Filter.of([b"a", b"k"], 2).encode()
    return {
        "entry.decode_value": Decoder(
            decode_value, (encode_shard(PIECES), encode_record(b"value"), b"\0"), _encode_value
        ),
        "entry.decode_block": Decoder(
            decode_block, (encode_block(list(ENTRIES)), encode_block([])), _encode_block
        ),
        "filter.Filter.decode": Decoder(_decode_filter, (key_filter,), Filter.encode),
        "segment.decode_index": Decoder(
            decode_index,
            (
                encode_index(
                    4, 30, [encode_reference(key, LOCATOR) for key in (b"a", b"k")], key_filter
                ),
            ),
            _encode_index,
        ),
        "manifest.decode_manifest": Decoder(
            decode_manifest,
            (encode_manifest(MANIFEST), encode_manifest(Manifest(0, (), ()))),
            encode_manifest,
        ),
    }


def _decode_filter(data: bytes) -> Filter:
    """Also asked once: a filter does its work then."""
    key_filter = Filter.decode(data)
    key_filter.may_contain(hash_of(b"a"))
    return key_filter


def _encode_value(value: bytes | Shard | None) -> bytes:
    if value is None:
        return b"\0"
    return encode_shard(value.pieces) if isinstance(value, Shard) else encode_record(value)


def _encode_block(block: Block) -> bytes:
    return encode_block(list(zip(block.keys, block.values, strict=True)))


def _encode_index(index: SegmentIndex) -> bytes:
    references = list(map(encode_reference, index.first_keys, index.blocks))
    return encode_index(index.run_id, index.entry_count, references, index.filter.encode())


# --- the file system's keys and records -----------------------------------------------------------


def _file_decoders() -> dict[str, Decoder]:
    inodes = (
        records.Inode(0o100644, size=5, used=5),
        records.Inode(0o40755, nlink=2, parent=1),
        records.Inode(0o120777, size=6, target=b"target"),
    )
    return {
        "records.decode_inode": Decoder(
            records.decode_inode, tuple(map(records.encode_inode, inodes)), records.encode_inode
        ),
        "records.decode_entry": Decoder(
            records.decode_entry,
            (records.encode_entry(records.Entry(2, 8)),),
            records.encode_entry,
        ),
        "records.decode_facts": Decoder(
            records.decode_facts, (records.encode_facts(records.Facts(9, 3)),), records.encode_facts
        ),
        "records.decode_access_list": Decoder(
            records.decode_access_list,
            (records.encode_access_list([records.AccessEntry(1, 7, 0xFFFFFFFF)] * 3),),
            records.encode_access_list,
        ),
        "keys.decode_file_key": Decoder(
            keys.decode_file_key,
            (keys.inode_key(7), keys.shard_key(7, 3), keys.xattr_key(7, b"user.a")),
            _encode_file_key,
        ),
        "keys.decode_entry_key": Decoder(
            keys.decode_entry_key,
            (keys.entry_key(1, b"name"),),
            lambda value: keys.entry_key(value[0], value[2]),
        ),
        "listing.decode_place": Decoder(listing.decode_place, (keys.entry_key(1, b"name"),)),
        "listing.decode_entries": Decoder(
            lambda data: listing.decode_entries([data]),
            (records.encode_entry(records.Entry(2, 8)),),
            lambda found: records.encode_entry(records.Entry(*found[0])),
        ),
        "records.decode_name_page": Decoder(
            records.decode_name_page,
            (
                records.encode_name_page(0, {}),
                records.encode_name_page(
                    0,
                    {
                        2: records.NamedInode(inodes[0], ((1, b"name"), (3, b"other"))),
                        3: records.NamedInode(inodes[1], ((1, b"folder"),)),
                    },
                ),
            ),
            lambda value: records.encode_name_page(*value),
        ),
        "keys.decode_name_page_key": Decoder(
            keys.decode_name_page_key, (keys.name_page_key(7),), keys.name_page_key
        ),
        "keys.decode_marker_key": Decoder(
            keys.decode_marker_key, (keys.orphan_key(7), keys.truncation_key(7))
        ),
    }


def _encode_file_key(key: keys.FileKey) -> bytes:
    if key.shard is not None:
        return keys.shard_key(key.ino, key.shard)
    return keys.inode_key(key.ino) if key.xattr is None else keys.xattr_key(key.ino, key.xattr)


# --- recordings -----------------------------------------------------------------------------------


def _recording_decoders() -> dict[str, Decoder]:
    block = bytes(4096)
    events: tuple[Event, ...] = (
        Content(4096, block),
        Beginning(),
        Request(1, RequestKind.WRITE, 0, 4096, (block,)),
        Request(2, RequestKind.FLUSH, 0, 0),
        Answer(1, True),
        Mark(b"word"),
        Answer(2, False),
    )
    buffers = [
        part for number, event in enumerate(events) for part in encode_recorded(number, event)
    ]
    recording = encode_header(Header(1 << 20, 512)) + b"".join(buffers)
    marks: tuple[promises.Said, ...] = (
        promises.NamesChanged(((1, b"name", 2), (1, b"old", 0))),
        promises.ContentChanged(2),
        promises.Promised(3, 2, 100, 1 << 60),
    )
    return {
        "recording.RecordingReader": Decoder(_read_recording, (recording, recording[:-3])),
        "recording.RecordingReader, mended": Decoder(
            _read_recording, (recording, recording[:-3]), mend=mend_recording
        ),
        "promises.decode_mark": Decoder(
            promises.decode_mark,
            tuple(map(promises.encode_mark, marks)),
            promises.encode_mark,
        ),
    }


def _read_recording(data: bytes) -> tuple[Header, list[object]]:
    reader = RecordingReader(data)
    return reader.header, list(reader.records())
