"""The manifest: which segments form the tree, and how much of each extent is live.

Role: one chunk, written anew whenever the set of runs changes, named by the superblock's root.
Live bytes are in it so that opening need not read the tree to know what can be reclaimed.

Invariants:
    I1. Everything a manifest names is persistent before the manifest is.
    I2. `usage` is exact as of delta number `checkpoint`; deltas behind it carry the changes.

Not here: installing a manifest (checkpoint.py).
"""

from __future__ import annotations

from typing import NamedTuple

from shardfs import limits
from shardfs.engine.extent import Usage
from shardfs.engine.layout import MANIFEST_HEADER, SEGMENT, USAGE, Bytes
from shardfs.engine.lsm.segment import SegmentMeta
from shardfs.engine.pieces import decode_locator, encode_locator
from shardfs.errors import CorruptionError


class Manifest(NamedTuple):
    """The tree as of one checkpoint."""

    checkpoint: int
    segments: tuple[SegmentMeta, ...]
    usage: tuple[Usage, ...]


def encode_manifest(manifest: Manifest, usage: bytes = b"") -> bytes:
    """The payload of a manifest chunk.

    Args:
        usage: in place of the manifest's own, encoded already (extent.UsageSnapshot).
    """
    usage = usage or b"".join(USAGE.pack(*each) for each in manifest.usage)
    parts = [
        MANIFEST_HEADER.pack(manifest.checkpoint, len(manifest.segments), len(usage) // USAGE.size)
    ]
    for segment in manifest.segments:
        parts += [
            SEGMENT.pack(
                segment.run_id,
                segment.level,
                segment.entry_count,
                segment.tombstone_count,
                segment.total_bytes,
                len(segment.first_key),
                len(segment.last_key),
            ),
            segment.first_key,
            segment.last_key,
            encode_locator(segment.index_locator),
        ]
    return b"".join((*parts, usage))


def decode_manifest(data: Bytes) -> Manifest:
    """The manifest in `data`.

    Raises:
        CorruptionError: cut short, too long, or with values no manifest has.
    """
    checkpoint, segment_count, usage_count = MANIFEST_HEADER.unpack(data)
    offset = MANIFEST_HEADER.size
    segments = []
    for _ in range(segment_count):
        *counts, first_bytes, last_bytes = SEGMENT.unpack(data, offset)
        offset += SEGMENT.size
        first_key = bytes(data[offset : offset + first_bytes])
        offset += first_bytes
        last_key = bytes(data[offset : offset + last_bytes])
        index, offset = decode_locator(data, offset + last_bytes)
        segment = SegmentMeta._make((*counts, first_key, last_key, index))
        if first_key > last_key or segment.level >= limits.LEVEL_COUNT_MAX:
            raise CorruptionError("a segment in the manifest is impossible", "manifest")
        segments.append(segment)
    if offset + usage_count * USAGE.size != len(data):
        raise CorruptionError("the manifest has a wrong length", "manifest")
    usage = tuple(map(Usage._make, USAGE.unpack_many(data, offset, usage_count)))
    return Manifest(checkpoint, tuple(segments), usage)
