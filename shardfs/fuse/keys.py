"""The file system's keys: which there are, how they are made, and what a key says.

Role: a key says what a record or a shard is about, and its byte order is the order of scans.
docs/format.md describes the same keys in prose.

Invariants:
    I1. Integers in keys are big-endian, so they sort as numbers do.
    I2. A file's inode, shards and xattrs are neighbours; a directory's entries are one range.
    I3. Taking a key apart gives back what it was made of. Any bytes give a value or
        CorruptionError, nothing else.
    I4. Prefixes are never reused with another meaning.

Not here: what is stored under a key (records.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import xxhash

from shardfs import limits
from shardfs.engine.layout import Bytes
from shardfs.errors import CorruptionError

ROOT_INO: Final = 1

INODE_PREFIX: Final = b"F"
ENTRY_PREFIX: Final = b"D"
ORPHAN_PREFIX: Final = b"O"
TRUNCATION_PREFIX: Final = b"T"
FACT_PREFIX: Final = b"M"
NAME_PAGE_PREFIX: Final = b"N"

_INODE_PART: Final = b"\x00"
_SHARD_PART: Final = b"\x01"
_XATTR_PART: Final = b"\x02"
_PARTS_END: Final = b"\x03"

INO_MAX: Final = (1 << 63) - 1
HASH_FIRST: Final = 4
"""Smallest entry_hash; smaller directory positions mean the start, "." and ".."."""
HASH_MAX: Final = (1 << 63) - 1

FACT_KEY: Final = FACT_PREFIX + b"inode-numbers"
NAMES_KEY: Final = FACT_PREFIX + b"name-pages"
"""Marks that every name is in the name pages; its record is empty."""
SCRUB_KEY: Final = FACT_PREFIX + b"scrub"


def name_page_key(page: int) -> bytes:
    """Key of the shard that holds a name page."""
    return NAME_PAGE_PREFIX + page.to_bytes(8, "big")


def decode_name_page_key(key: Bytes) -> int:
    """The number of a name page.

    Raises:
        CorruptionError: no such key.
    """
    if len(key) != 9 or bytes(key[:1]) != NAME_PAGE_PREFIX:
        raise CorruptionError(f"key {bytes(key[:32]).hex()} is not one of a name page")
    return int.from_bytes(key[1:], "big")


def inode_key(ino: int) -> bytes:
    """Key of an inode record."""
    return b"F" + ino.to_bytes(8, "big") + _INODE_PART


def shard_key(ino: int, index: int) -> bytes:
    """Key of the shard that holds bytes [index * SHARD_BYTES, (index + 1) * SHARD_BYTES)."""
    return b"F" + ino.to_bytes(8, "big") + _SHARD_PART + index.to_bytes(8, "big")


def shards_end(ino: int) -> bytes:
    """First key behind every shard of a file."""
    return b"F" + ino.to_bytes(8, "big") + _XATTR_PART


def xattr_key(ino: int, name: bytes) -> bytes:
    """Key of an extended attribute; the record is its value."""
    return b"F" + ino.to_bytes(8, "big") + _XATTR_PART + name


def xattrs_end(ino: int) -> bytes:
    """First key behind everything of an inode."""
    return b"F" + ino.to_bytes(8, "big") + _PARTS_END


def entry_hash(name: bytes) -> int:
    """Where a name stands in its directory: a 63-bit number, at least HASH_FIRST."""
    number = xxhash.xxh3_64_intdigest(name) >> 1
    return number if number >= HASH_FIRST else number + HASH_FIRST


def entry_key(parent: int, name: bytes) -> bytes:
    """Key of the entry `name` in the directory `parent`."""
    return entries_start(parent, entry_hash(name)) + name


def entries_start(parent: int, position: int = 0) -> bytes:
    """First key a directory's entry may have whose hash is `position` or more."""
    return b"D" + parent.to_bytes(8, "big") + position.to_bytes(8, "big")


def orphan_key(ino: int) -> bytes:
    """Key that marks an inode without a name; its record is empty."""
    return ORPHAN_PREFIX + ino.to_bytes(8, "big")


def truncation_key(ino: int) -> bytes:
    """Key that marks shards beyond the end of a file yet to be deleted; its record is empty."""
    return TRUNCATION_PREFIX + ino.to_bytes(8, "big")


class FileKey(NamedTuple):
    """A decoded key below INODE_PREFIX: exactly one of shard and xattr, or neither (the inode)."""

    ino: int
    shard: int | None
    xattr: bytes | None


def decode_file_key(key: Bytes) -> FileKey:
    """What a key below INODE_PREFIX is about.

    Raises:
        CorruptionError: no such key.
    """
    key = bytes(key)
    part = key[9:10]
    ino = int.from_bytes(key[1:9], "big")
    if key[:1] == INODE_PREFIX and 0 < ino <= INO_MAX:
        if part == _INODE_PART and len(key) == 10:
            return FileKey(ino, None, None)
        if part == _SHARD_PART and len(key) == 18:
            return FileKey(ino, int.from_bytes(key[10:], "big"), None)
        if part == _XATTR_PART and 10 < len(key) <= 10 + limits.XATTR_NAME_BYTES_MAX:
            return FileKey(ino, None, key[10:])
    raise CorruptionError(f"key {key[:32].hex()} is not one of a file")


def decode_entry_key(key: Bytes) -> tuple[int, int, bytes]:
    """(directory, hash, name) of a directory entry's key.

    Raises:
        CorruptionError: no such key, or the name does not have that hash.
    """
    key = bytes(key)
    parent, position, name = int.from_bytes(key[1:9], "big"), key[9:17], key[17:]
    if key[:1] != ENTRY_PREFIX or not 0 < parent <= INO_MAX or not is_name(name):
        raise CorruptionError(f"key {key[:32].hex()} is not one of a directory entry")
    if entry_hash(name) != int.from_bytes(position, "big"):
        raise CorruptionError(f"directory entry {name!r} stands at the wrong place")
    return parent, int.from_bytes(position, "big"), name


def decode_marker_key(key: Bytes) -> int:
    """The inode of an orphan's or a truncation's key.

    Raises:
        CorruptionError: no such key.
    """
    key = bytes(key)
    ino = int.from_bytes(key[1:], "big")
    if len(key) != 9 or key[:1] not in (ORPHAN_PREFIX, TRUNCATION_PREFIX) or not 0 < ino <= INO_MAX:
        raise CorruptionError(f"key {key[:32].hex()} marks no inode")
    return ino


def is_name(name: bytes) -> bool:
    """A name that a directory entry may have."""
    return (
        0 < len(name) <= limits.NAME_BYTES_MAX
        and name not in (b".", b"..")
        and b"/" not in name
        and b"\0" not in name
    )
