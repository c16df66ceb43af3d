"""The file system's records, as tables: the only place that packs or unpacks them.

Role: a record is one immutable value with one encoding. docs/format.md describes the same tables
in prose.

Invariants:
    I1. Integers in records are little-endian.
    I2. Encoding then decoding gives back an equal value. Decoding any bytes returns a value or
        raises CorruptionError, nothing else.
    I3. Stored numbers (RECORD_VERSION) are never reused with another meaning.

Not here: keys (keys.py), shards' contents (engine/pieces.py), and what operations do
(namespace.py, files.py).
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from shardfs import limits
from shardfs.engine.layout import Bytes, Table
from shardfs.errors import CorruptionError
from shardfs.fuse.keys import INO_MAX, ROOT_INO, is_name

RECORD_VERSION: Final = 1
ACCESS_LIST_VERSION: Final = 2
"""The kernel's, whose encoding of access lists is stored as it is."""

INODES_PER_NAME_PAGE: Final = 32
NAMES_PER_INODE_MAX: Final = 64
"""A name page keeps no more names of one inode."""

_TIME_NS_MIN: Final = -(1 << 63)
_TIME_NS_MAX: Final = (1 << 63) - 1

_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
KEY_TYPES: Final = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, *_DEVICES, stat.S_IFIFO, stat.S_IFSOCK)
)

INODE: Final = Table(
    "inode",
    (
        ("version", "B", "RECORD_VERSION"),
        ("flags", "B", "zero in version 1"),
        ("mode", "H", "type and permission bits, as in stat(2)"),
        ("nlink", "I", "names; for a directory 2 and one more for each subdirectory; 0 if removed"),
        ("uid", "I", "owner"),
        ("gid", "I", "group"),
        ("rdev", "I", "device number of a device file"),
        ("xattrs", "I", "number of extended attributes"),
        ("size", "Q", "length in bytes; for a directory its number of entries"),
        ("used", "Q", "bytes held by shards, holes not counted"),
        ("atime_ns", "q", "last access, nanoseconds since the epoch"),
        ("mtime_ns", "q", "last change of the content"),
        ("ctime_ns", "q", "last change of the inode"),
        ("btime_ns", "q", "creation"),
        ("parent", "Q", "for a directory the directory it is in, else 0"),
    ),
)
"""Followed, for a symbolic link, by its target."""

ENTRY: Final = Table(
    "directory entry",
    (
        ("ino", "Q", "inode number"),
        ("type", "B", "file type: mode >> 12"),
    ),
)

FACTS: Final = Table(
    "file system facts",
    (
        ("version", "B", "RECORD_VERSION"),
        ("next_ino", "Q", "no inode number at or above this one has been used"),
        ("inodes", "Q", "how many inodes there are, those without a name included"),
    ),
)

ACCESS_LIST: Final = Table("access list", (("version", "I", "ACCESS_LIST_VERSION"),))
"""Followed by its entries."""

ACCESS_ENTRY: Final = Table(
    "access entry",
    (
        ("tag", "H", "1 owner, 2 user, 4 owning group, 8 group, 16 mask, 32 others"),
        ("permissions", "H", "4 read, 2 write, 1 execute"),
        ("id", "I", "of the user or the group; 0xffffffff where the tag names none"),
    ),
)

NAME_PAGE: Final = Table(
    "name page",
    (
        ("version", "B", "RECORD_VERSION"),
        ("page", "Q", "number of the page: inode number / 32"),
        ("length", "I", "bytes of the whole page"),
        ("inode_count", "H", "named inodes that follow"),
    ),
)

NAMED_INODE: Final = Table(
    "named inode",
    (
        ("ino", "Q", "inode number"),
        ("inode_bytes", "H", "length of its inode record, which follows"),
        ("name_count", "H", "names that follow the record"),
    ),
)

LINKED_NAME: Final = Table(
    "linked name",
    (
        ("parent", "Q", "inode number of the directory"),
        ("name_bytes", "B", "length of the name, which follows"),
    ),
)


class Inode(NamedTuple):
    """What stat(2) knows of a file, and a little more. Times are nanoseconds since the epoch."""

    mode: int
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    xattrs: int = 0
    size: int = 0
    used: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    parent: int = 0
    target: bytes = b""

    @property
    def is_directory(self) -> bool:
        """A directory."""
        return self.mode & 0o170000 == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        """A regular file."""
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        """A symbolic link."""
        return self.mode & 0o170000 == stat.S_IFLNK

    def with_entries(self, entries: int, subdirectories: int, now_ns: int) -> Inode:
        """The directory with more entries; faster than `_replace`, as the next two are."""
        nlink, size = self.nlink + subdirectories, self.size + entries
        times = self.atime_ns, now_ns, now_ns, self.btime_ns
        fields = self.mode, nlink, *self[2:6], size, self.used, *times, self.parent, self.target
        return tuple.__new__(Inode, fields)  # a third of what Inode(...) takes

    def with_names(self, nlink: int, parent: int, now_ns: int) -> Inode:
        """The inode with so many names, of which some have changed."""
        fields = self.mode, nlink, *self[2:10], now_ns, self.btime_ns, parent, self.target
        return tuple.__new__(Inode, fields)

    def with_content(self, size: int, used: int, mtime_ns: int, ctime_ns: int) -> Inode:
        """The file with other content."""
        times = self.atime_ns, mtime_ns, ctime_ns, self.btime_ns
        return tuple.__new__(Inode, (*self[:6], size, used, *times, self.parent, self.target))


class Entry(NamedTuple):
    """One name's target: the inode and its type (mode >> 12)."""

    ino: int
    type: int

    @property
    def is_directory(self) -> bool:
        """The name of a directory."""
        return self.type == stat.S_IFDIR >> 12


class AccessEntry(NamedTuple):
    """Rights of one user, group or class of an access list; see access_lists.py."""

    tag: int
    permissions: int
    id: int


class Facts(NamedTuple):
    """What the file system remembers of itself."""

    next_ino: int
    inodes: int = 1


def encode_inode(inode: Inode) -> bytes:
    """The inode as stored. Requires: every field within its width."""
    fields = INODE.pack(RECORD_VERSION, 0, *inode[:13])
    return fields + inode.target if inode.target else fields


def decode_inode(data: Bytes) -> Inode:
    """The inode that `data` holds.

    Raises:
        CorruptionError: the bytes are no inode.
    """
    version, flags, *fields = INODE.unpack(data)
    if version != RECORD_VERSION or flags:
        raise CorruptionError(f"inode of unknown version {version} or flags {flags:#x}")
    inode = Inode._make([*fields, bytes(data[INODE.size :])])
    if stat.S_IFMT(inode.mode) not in KEY_TYPES:
        raise CorruptionError(f"inode with the impossible mode {inode.mode:#o}")
    if inode.is_symlink:
        if not 0 < inode.size == len(inode.target) <= limits.SYMLINK_BYTES_MAX:
            raise CorruptionError(f"symbolic link of size {inode.size} with a target of another")
    elif inode.target:
        raise CorruptionError(f"{len(inode.target)} stray bytes behind an inode")
    if inode.is_regular and inode.size > limits.FILE_BYTES_MAX:
        raise CorruptionError(f"inode of {inode.size} bytes, more than any file may have")
    if inode.is_directory != (0 < inode.parent <= INO_MAX):
        raise CorruptionError(f"inode of mode {inode.mode:#o} with parent {inode.parent}")
    return inode


def encode_entry(entry: Entry) -> bytes:
    """The directory entry as stored."""
    return ENTRY.pack(entry.ino, entry.type)


def decode_entry(data: Bytes) -> Entry:
    """The directory entry that `data` holds.

    Raises:
        CorruptionError: the bytes are no directory entry.
    """
    if len(data) != ENTRY.size:
        raise CorruptionError(f"directory entry of {len(data)} bytes")
    entry = Entry._make(ENTRY.unpack(data))
    if not 0 < entry.ino <= INO_MAX or entry.type << 12 not in KEY_TYPES:
        raise CorruptionError(f"directory entry of inode {entry.ino}, type {entry.type}")
    return entry


def encode_facts(facts: Facts) -> bytes:
    """The facts as stored."""
    return FACTS.pack(RECORD_VERSION, *facts)


def decode_facts(data: Bytes) -> Facts:
    """The facts that `data` holds.

    Raises:
        CorruptionError: the bytes are no facts.
    """
    if len(data) != FACTS.size:
        raise CorruptionError(f"file system facts of {len(data)} bytes")
    version, next_ino, inodes = FACTS.unpack(data)
    if version != RECORD_VERSION or not ROOT_INO < next_ino <= INO_MAX:
        raise CorruptionError(f"file system facts: version {version}, next inode {next_ino}")
    if not 0 < inodes < next_ino:
        raise CorruptionError(f"file system facts: {inodes} inodes, next inode {next_ino}")
    return Facts(next_ino, inodes)


def encode_access_list(entries: Sequence[AccessEntry]) -> bytes:
    """An access list as stored, and as the kernel has it."""
    packed = [ACCESS_ENTRY.pack(*entry) for entry in entries]
    return ACCESS_LIST.pack(ACCESS_LIST_VERSION) + b"".join(packed)


def decode_access_list(data: Bytes) -> tuple[AccessEntry, ...]:
    """The access list that `data` holds.

    Raises:
        CorruptionError: the bytes are no access list.
    """
    (version,) = ACCESS_LIST.unpack(data)
    count, rest = divmod(len(data) - ACCESS_LIST.size, ACCESS_ENTRY.size)
    if version != ACCESS_LIST_VERSION or rest:
        raise CorruptionError(f"access list of version {version} and {len(data)} bytes")
    return tuple(map(AccessEntry._make, ACCESS_ENTRY.unpack_many(data, ACCESS_LIST.size, count)))


class NamedInode(NamedTuple):
    """An inode, and the (directory, name) of each of its names, as a name page keeps them."""

    inode: Inode
    names: tuple[tuple[int, bytes], ...]


def encode_name_page(page: int, inodes: Mapping[int, NamedInode]) -> bytes:
    """A name page: the inodes of one range, by number, with their names."""
    parts = []
    for ino in sorted(inodes):
        inode, names = inodes[ino]
        record = encode_inode(inode)
        parts += [NAMED_INODE.pack(ino, len(record), len(names)), record]
        for parent, name in names:
            parts += [LINKED_NAME.pack(parent, len(name)), name]
    body = b"".join(parts)
    return NAME_PAGE.pack(RECORD_VERSION, page, NAME_PAGE.size + len(body), len(inodes)) + body


def decode_name_page(data: Bytes) -> tuple[int, dict[int, NamedInode]]:
    """The number of the name page that `data` begins with, and what it holds.

    Raises:
        CorruptionError: the bytes are no name page.
    """
    version, page, length, count = NAME_PAGE.unpack(data)
    if version != RECORD_VERSION or length > len(data):
        raise CorruptionError(f"name page of version {version} and {length} bytes")
    data = bytes(data[:length])
    at = NAME_PAGE.size
    inodes: dict[int, NamedInode] = {}
    for _ in range(count):
        ino, inode_bytes, name_count = NAMED_INODE.unpack(data, at)
        at += NAMED_INODE.size
        if ino // INODES_PER_NAME_PAGE != page or ino in inodes or at + inode_bytes > length:
            raise CorruptionError(f"inode {ino} does not belong into name page {page}")
        inode = decode_inode(data[at : at + inode_bytes])
        at += inode_bytes
        names = []
        for _ in range(name_count):
            parent, name_bytes = LINKED_NAME.unpack(data, at)
            at += LINKED_NAME.size
            name = data[at : at + name_bytes]
            at += name_bytes
            if not 0 < parent <= INO_MAX or len(name) != name_bytes or not is_name(name):
                raise CorruptionError(f"a name of inode {ino} in name page {page} is none")
            names.append((parent, name))
        inodes[ino] = NamedInode(inode, tuple(names))
    if at != length:
        raise CorruptionError(f"{length - at} stray bytes in name page {page}")
    return page, inodes


def clamp_time_ns(time_ns: int) -> int:
    """The nearest time that a record can hold (the years 1677 to 2262)."""
    return min(max(time_ns, _TIME_NS_MIN), _TIME_NS_MAX)
