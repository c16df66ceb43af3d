"""What holds for the small decoders whatever the bytes, as contracts that a solver can decide.

Role: each function states one promise about stored bytes as a contract (post: and raises: lines,
in the notation of PEP 316). scripts/prove_decoders has CrossHair look for bytes that break one;
where it has followed every path, the promise is proved for inputs of the sizes stated here.

Invariants:
    I1  A contract is about one decoder, and calls nothing that does I/O.
    I2  Sizes are bounded (pre: lines): a solver follows every path, and loops make paths.

Not here: decoders behind checksums, and those whose work is in a library's C code, which a
solver cannot look into; those are checked by decoders and the fuzzer alone.
"""

from __future__ import annotations

from shardfs.engine.framing import align
from shardfs.engine.lsm.entry import decode_value
from shardfs.engine.pieces import granule_count
from shardfs.errors import CorruptionError  # noqa: F401 (in contracts)
from shardfs.fuse import keys, records
from shardfs.limits import FRAME_ALIGNMENT_BYTES  # noqa: F401 (in contracts)


def marker_keys(key: bytes) -> int:
    """A marker's key names an inode, or is corrupt.

    pre: len(key) <= 10
    post: 0 < __return__ <= keys.INO_MAX
    raises: CorruptionError
    """
    return keys.decode_marker_key(key)


def file_keys(key: bytes) -> keys.FileKey:
    """A file's key is of the inode, a shard or an attribute, or is corrupt.

    pre: len(key) <= 20
    post: 0 < __return__.ino <= keys.INO_MAX
    post: __return__.shard is None or __return__.xattr is None
    raises: CorruptionError
    """
    return keys.decode_file_key(key)


def shard_keys_survive(ino: int, index: int) -> keys.FileKey:
    """A shard's key says which shard.

    pre: 0 < ino <= keys.INO_MAX
    pre: 0 <= index < 2 ** 64
    post: __return__ == (ino, index, None)
    """
    return keys.decode_file_key(keys.shard_key(ino, index))


def orphan_keys_survive(ino: int) -> int:
    """An orphan's key says which inode.

    pre: 0 < ino <= keys.INO_MAX
    post: __return__ == ino
    """
    return keys.decode_marker_key(keys.orphan_key(ino))


def entries(data: bytes) -> records.Entry:
    """A directory entry has an inode, or is corrupt.

    pre: len(data) <= 10
    post: 0 < __return__.ino <= keys.INO_MAX
    raises: CorruptionError
    """
    return records.decode_entry(data)


def facts(data: bytes) -> records.Facts:
    """The file system's facts are possible, or corrupt.

    pre: len(data) <= 18
    post: keys.ROOT_INO < __return__.next_ino <= keys.INO_MAX
    post: 0 < __return__.inodes < __return__.next_ino
    raises: CorruptionError
    """
    return records.decode_facts(data)


def values(value: bytes) -> bool:
    """A value without pieces is a record, a tombstone, or corrupt.

    pre: len(value) <= 6
    pre: len(value) == 0 or value[0] != 2
    post: __return__
    raises: CorruptionError
    """
    decoded = decode_value(value)
    return decoded is None or decoded == value[1:]


def names(name: bytes) -> bool:
    """A name has no slash, no zero byte, and is neither of the two that every directory has.

    pre: len(name) <= 3
    post: not __return__ or (len(name) > 0 and 47 not in name and 0 not in name)
    """
    return keys.is_name(name)


def granules(length: int) -> int:
    """There are as many granules as cover the payload.

    pre: 0 <= length < 2 ** 32
    post: (__return__ - 1) * granule_bytes(length) < length <= __return__ * granule_bytes(length)
    """
    return granule_count(length)


def alignment(length: int) -> int:
    """The next frame starts at the first allowed place behind this one.

    pre: 0 <= length < 2 ** 32
    post: length <= __return__ < length + FRAME_ALIGNMENT_BYTES
    post: __return__ % FRAME_ALIGNMENT_BYTES == 0
    """
    return align(length)


def times(time_ns: int) -> int:
    """A time that fits a record stays; any other becomes the nearest that fits.

    post: -(2 ** 63) <= __return__ < 2 ** 63
    post: __return__ == time_ns or not -(2 ** 63) <= time_ns < 2 ** 63
    """
    return records.clamp_time_ns(time_ns)
