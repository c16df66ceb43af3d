"""The rules of rename(2), as plain functions over Tables.

Role: what may be moved onto what, and the one batch that does it: replacing, NOREPLACE, EXCHANGE,
moves of directories between directories.

Invariants: those of namespace.py (I1 to I4) hold after every rename.

Not here: the order of content and names across a crash (namespace.rename).
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from shardfs.errors import CorruptionError, FileError
from shardfs.fuse.change import Change
from shardfs.fuse.keys import ROOT_INO, orphan_key
from shardfs.fuse.records import Entry, Inode
from shardfs.fuse.tables import Tables

NOREPLACE: Final = 1
EXCHANGE: Final = 2


class Renaming(NamedTuple):
    """The arguments of one rename."""

    old_parent: int
    old_name: bytes
    new_parent: int
    new_name: bytes
    flags: int


class Plan(NamedTuple):
    """What a rename would do: move the inode `moved`, over `replaced` if that is not None."""

    moved: int
    replaced: int | None


def plan_rename(tables: Tables, renaming: Renaming) -> Plan:
    """Check a rename against the rules.

    Raises:
        FileError, NotLoaded
    """
    if renaming.flags not in (0, NOREPLACE, EXCHANGE):
        raise FileError(errno.EINVAL)
    for parent in dict.fromkeys((renaming.old_parent, renaming.new_parent)):
        directory = tables.find_inode(parent)
        if directory is None or directory.nlink == 0:
            raise FileError(errno.ENOENT)
        if not directory.is_directory:
            raise FileError(errno.ENOTDIR)
    old = tables.find_entry(renaming.old_parent, renaming.old_name)
    new = tables.find_entry(renaming.new_parent, renaming.new_name)
    if old is None or (new is None and renaming.flags == EXCHANGE):
        raise FileError(errno.ENOENT)
    if new is not None and renaming.flags == NOREPLACE:
        raise FileError(errno.EEXIST)
    if old.is_directory:
        _require_outside(tables, old.ino, renaming.new_parent, errno.EINVAL)
    if new is None:
        return Plan(old.ino, None)
    if new.is_directory:
        above = errno.EINVAL if renaming.flags == EXCHANGE else errno.ENOTEMPTY
        _require_outside(tables, new.ino, renaming.old_parent, above)
    if renaming.flags != EXCHANGE and old.ino != new.ino:
        if old.is_directory and not new.is_directory:
            raise FileError(errno.ENOTDIR)
        if new.is_directory and not old.is_directory:
            raise FileError(errno.EISDIR)
        if new.is_directory and _known(tables, new).size:
            raise FileError(errno.ENOTEMPTY)
    return Plan(old.ino, new.ino)


def apply_rename(tables: Tables, renaming: Renaming, plan: Plan | None = None) -> int | None:
    """Check and do a rename, in one batch.

    Args:
        plan: what plan_rename has just said, nothing having been awaited since.

    Returns:
        The inode that has lost its last name, or None.

    Raises:
        FileError, NotLoaded, ReadOnlyError: nothing was changed.
        NoSpaceError: nor was it; a longer name on a device that is full of names.
    """
    plan = plan or plan_rename(tables, renaming)
    if plan.moved == plan.replaced:
        return None  # two names of one file: POSIX wants both kept
    if plan.replaced is None and len(renaming.new_name) > len(renaming.old_name):
        tables.store.require_tree_room()
    change = tables.change()
    old = tables.find_entry(renaming.old_parent, renaming.old_name)
    new = tables.find_entry(renaming.new_parent, renaming.new_name)
    assert old is not None
    now = tables.now_ns()
    nameless = None
    if renaming.flags == EXCHANGE:
        assert new is not None
        change.put_entry(renaming.old_parent, renaming.old_name, new)
        _move(change, new, renaming.new_parent, renaming.old_parent, now)
    else:
        change.delete_entry(renaming.old_parent, renaming.old_name)
        if new is not None:
            nameless = _replace(change, new, renaming.new_parent, now)
    change.put_entry(renaming.new_parent, renaming.new_name, old)
    _move(change, old, renaming.old_parent, renaming.new_parent, now)
    change.commit()
    return nameless


def _move(change: Change, entry: Entry, source: int, target: int, now_ns: int) -> None:
    """Account for an entry that goes from one directory to another, or stays in the same."""
    inode = change.find_inode(entry.ino)
    if inode is None:
        raise CorruptionError(f"an entry names inode {entry.ino}, which does not exist")
    above = target if entry.is_directory else 0
    change.put_inode(entry.ino, inode.with_names(inode.nlink, above, now_ns))
    if source == target:
        _count(change, target, 0, 0, now_ns)
        return
    _count(change, source, -1, -entry.is_directory, now_ns)
    _count(change, target, 1, int(entry.is_directory), now_ns)


def _replace(change: Change, entry: Entry, parent: int, now_ns: int) -> int | None:
    """Account for an entry that is replaced; returns its inode if that has no name any more."""
    inode = change.find_inode(entry.ino)
    if inode is None:
        raise CorruptionError(f"an entry names inode {entry.ino}, which does not exist")
    nlink = 0 if entry.is_directory else inode.nlink - 1
    change.put_inode(entry.ino, inode.with_names(nlink, inode.parent, now_ns))
    _count(change, parent, -1, -entry.is_directory, now_ns)
    if nlink:
        return None
    change.mark(orphan_key(entry.ino))
    return entry.ino


def _count(change: Change, directory: int, entries: int, subdirectories: int, now_ns: int) -> None:
    inode = change.find_inode(directory)
    assert inode is not None, "plan_rename has seen it"
    change.put_inode(directory, inode.with_entries(entries, subdirectories, now_ns))


def _require_outside(tables: Tables, ino: int, directory: int, error: int) -> None:
    """Refuse if `directory` is the directory `ino` or lies below it."""
    while directory != ino:
        if directory == ROOT_INO:
            return
        inode = tables.find_inode(directory)
        if inode is None:
            raise FileError(errno.ENOENT)
        directory = inode.parent
    raise FileError(error)


def _known(tables: Tables, entry: Entry) -> Inode:
    inode = tables.find_inode(entry.ino)
    if inode is None:
        raise CorruptionError(f"an entry names inode {entry.ino}, which does not exist")
    return inode
