"""POSIX access lists: rights of single users and groups beside a file's mode. Values and rules.

Role: what a list says of the mode and the mode of the list, and what a new file inherits from its
directory's default list. The kernel checks permissions by the lists; it leaves it to the file
system to keep list and mode equal and to hand lists on (libfuse: FUSE_CAP_POSIX_ACL).

Invariants:
    I1. A file's access list and its mode agree: owner and others are the same in both, and the
        mode's group bits are the list's mask.
    I2. A list that says no more than a mode is not stored: the mode says it.

Source: acl(5) and POSIX 1003.1e draft 17, section 23.

Not here: where lists are kept (xattrs.py), when they change (xattrs.py, namespace.py).
"""

from __future__ import annotations

import stat
from typing import Final

from shardfs.fuse.records import AccessEntry

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = frozenset({ACCESS, DEFAULT})

OWNER: Final = 1
USER: Final = 2
GROUP_OWNER: Final = 4
GROUP: Final = 8
MASK: Final = 16
OTHERS: Final = 32

AccessList = tuple[AccessEntry, ...]

_ORDER: Final = (OWNER, USER, GROUP_OWNER, GROUP, MASK, OTHERS)
_ONCE: Final = (OWNER, GROUP_OWNER, OTHERS)
_SHIFTS: Final = {OWNER: 6, OTHERS: 0}
_PERMISSIONS: Final = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO


def is_valid(entries: AccessList) -> bool:
    """The entries form a list: in order, each user and group once, with a mask if one is needed."""
    tags = [entry.tag for entry in entries]
    if any(
        tag not in _ORDER or not 0 <= entry.permissions <= 7
        for tag, entry in zip(tags, entries, strict=True)
    ):
        return False
    if tags != sorted(tags, key=_ORDER.index) or any(tags.count(tag) != 1 for tag in _ONCE):
        return False
    named = [entry for entry in entries if entry.tag in (USER, GROUP)]
    if len({(entry.tag, entry.id) for entry in named}) != len(named):
        return False
    return tags.count(MASK) == 1 or (not named and MASK not in tags)


def is_minimal(entries: AccessList) -> bool:
    """The list says no more than a mode does (I2)."""
    return len(entries) == len(_ONCE)


def mode_of(entries: AccessList, mode: int) -> int:
    """A mode with the permissions that a list gives (I1); its other bits stay."""
    shifts = _group_class(entries)
    given = sum(entry.permissions << shifts[entry.tag] for entry in entries if entry.tag in shifts)
    return mode & ~_PERMISSIONS | given


def with_mode(entries: AccessList, mode: int) -> AccessList:
    """The list after chmod(2) to a mode (I1)."""
    shifts = _group_class(entries)
    return tuple(
        entry._replace(permissions=mode >> shifts[entry.tag] & 7) if entry.tag in shifts else entry
        for entry in entries
    )


def inherited(default: AccessList, mode: int) -> tuple[AccessList | None, int]:
    """What a new file gets in a directory with a default list.

    Args:
        mode: as asked for; the umask does not count where there is a default list.

    Returns:
        The file's access list, or None if the mode says it all, and its mode.
    """
    shifts = _group_class(default)
    entries = tuple(
        entry._replace(permissions=entry.permissions & mode >> shifts[entry.tag])
        if entry.tag in shifts
        else entry
        for entry in default
    )
    return None if is_minimal(entries) else entries, mode_of(entries, mode)


def _group_class(entries: AccessList) -> dict[int, int]:
    """Which entries are the mode's: tag -> shift. The mask stands for the group where it is."""
    has_mask = any(entry.tag == MASK for entry in entries)
    return {**_SHIFTS, MASK if has_mask else GROUP_OWNER: 3}
