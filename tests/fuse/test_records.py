"""fuse/records.py: encoding and decoding agree. (Any bytes: tests/checking/test_decoders.py.)"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfs import limits
from shardfs.errors import CorruptionError
from shardfs.fuse import keys, records
from shardfs.fuse.records import Entry, Facts, Inode

INO = st.integers(1, keys.INO_MAX)
U32 = st.integers(0, 2**32 - 1)
TIME = st.integers(-(2**63), 2**63 - 1)
NAME = st.binary(min_size=1, max_size=255).filter(keys.is_name)

REGULAR = st.builds(
    Inode,
    mode=st.integers(0, 0o7777).map(lambda bits: 0o100000 | bits),
    nlink=U32,
    uid=U32,
    gid=U32,
    rdev=U32,
    xattrs=U32,
    size=st.integers(0, limits.FILE_BYTES_MAX),
    used=st.integers(0, 2**64 - 1),
    atime_ns=TIME,
    mtime_ns=TIME,
    ctime_ns=TIME,
    btime_ns=TIME,
    parent=st.just(0),
    target=st.just(b""),
)
DIRECTORY = st.tuples(U32, st.integers(0, 2**40), INO).map(
    lambda fields: Inode(0o40755, nlink=fields[0], size=fields[1], parent=fields[2])
)
SYMLINK = st.binary(min_size=1, max_size=limits.SYMLINK_BYTES_MAX).map(
    lambda target: Inode(0o120777, size=len(target), target=target)
)


@given(REGULAR | DIRECTORY | SYMLINK)
def test_inodes_survive_encoding(inode: Inode) -> None:
    assert records.decode_inode(records.encode_inode(inode)) == inode


@given(INO, st.sampled_from([1, 2, 4, 6, 8, 10, 12]))
def test_entries_survive_encoding(ino: int, kind: int) -> None:
    assert records.decode_entry(records.encode_entry(Entry(ino, kind))) == Entry(ino, kind)


@given(st.integers(2, keys.INO_MAX), st.data())
def test_facts_survive_encoding(next_ino: int, data: st.DataObject) -> None:
    facts = Facts(next_ino, data.draw(st.integers(1, next_ino - 1)))
    assert records.decode_facts(records.encode_facts(facts)) == facts


@given(INO, st.integers(0, 2**64 - 1), NAME)
def test_keys_tell_what_they_are_about(ino: int, index: int, name: bytes) -> None:
    assert keys.decode_file_key(keys.inode_key(ino)) == (ino, None, None)
    assert keys.decode_file_key(keys.shard_key(ino, index)) == (ino, index, None)
    assert keys.decode_file_key(keys.xattr_key(ino, name)) == (ino, None, name)
    assert keys.decode_marker_key(keys.orphan_key(ino)) == ino
    assert keys.decode_marker_key(keys.truncation_key(ino)) == ino
    parent, position, found = keys.decode_entry_key(keys.entry_key(ino, name))
    assert (parent, position, found) == (ino, keys.entry_hash(name), name)
    assert keys.HASH_FIRST <= position <= keys.HASH_MAX


@given(st.integers(1, 2**63 - 2), st.integers(0, 2**64 - 2), NAME)
def test_key_order_is_the_order_of_scans(ino: int, index: int, name: bytes) -> None:
    ascending = [
        keys.inode_key(ino),
        keys.shard_key(ino, index),
        keys.shard_key(ino, index + 1),
        keys.shards_end(ino),
        keys.xattr_key(ino, name),
        keys.xattrs_end(ino),
        keys.inode_key(ino + 1),
    ]
    assert ascending == sorted(ascending) and len(set(ascending)) == len(ascending)


@pytest.mark.parametrize(
    "inode",
    [
        Inode(0o130644),
        Inode(0o40755),
        Inode(0o100644, parent=3),
        Inode(0o120777, size=3, target=b"four"),
        Inode(0o120777),
        Inode(0o100644, target=b"stray"),
        Inode(0o100644, size=limits.FILE_BYTES_MAX + 1),
    ],
)
def test_impossible_inodes_are_corrupt(inode: Inode) -> None:
    with pytest.raises(CorruptionError):
        records.decode_inode(records.encode_inode(inode))


def test_the_bytes_of_an_inode_do_not_change() -> None:
    inode = Inode(0o100644, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    fields = "01 00 a481 01000000 02000000 03000000 04000000 05000000"
    numbers = "".join(f"{number:02x}00000000000000" for number in (6, 7, 8, 9, 10, 11, 0))
    assert records.encode_inode(inode) == bytes.fromhex(fields.replace(" ", "") + numbers)
    assert keys.inode_key(258) == b"F\0\0\0\0\0\0\1\2\0"
    assert keys.shard_key(258, 3) == b"F\0\0\0\0\0\0\1\2\1\0\0\0\0\0\0\0\3"
    assert keys.entry_key(1, b"a").hex() == "4400000000000000017363195b0f4b270f61"


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256])
def test_names_that_no_entry_has(name: bytes) -> None:
    assert not keys.is_name(name)


def test_inodes_are_changed_as_replace_does() -> None:
    inode = Inode._make((*range(1, 14), b"target"))
    assert inode.with_entries(5, -1, 99) == inode._replace(
        nlink=inode.nlink - 1, size=inode.size + 5, mtime_ns=99, ctime_ns=99
    )
    assert inode.with_names(7, 8, 99) == inode._replace(nlink=7, parent=8, ctime_ns=99)
    assert inode.with_content(1, 2, 3, 4) == inode._replace(size=1, used=2, mtime_ns=3, ctime_ns=4)
