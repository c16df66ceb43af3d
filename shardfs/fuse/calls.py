"""What a FUSE request was about: the same few fields for every kind.

Role: turns the arguments and the result of a handler of operations.py into a `Call`, for those who
watch.

Invariants:
    I1. Nothing of what is read or written is kept, only how much it was.

Not here: watching (tracing.py), paths (call_paths.py).
"""

from __future__ import annotations

import errno
from typing import Any, Final, NamedTuple

import pyfuse3

from shardfs.errors import FileError
from shardfs.fuse.handles import Handles


class Call(NamedTuple):
    """One request that was answered.

    begun_ns: of the wall clock.
    ino, name: what it is about: an inode, or a name in the directory `ino`; 0: the whole.
    target: the new directory and name of rename and link.
    detail: what else was asked.
    pid: who asked; 0: unknown.
    found: the inode that was answered; 0: none.
    length: bytes that were read or written, else -1.
    errno: 0 for success.
    """

    begun_ns: int
    took_ns: int
    call: str
    ino: int
    name: bytes
    target: tuple[int, bytes] | None
    detail: str
    pid: int
    found: int
    length: int
    errno: int


class Subject(NamedTuple):
    """What a request is about; see Call."""

    ino: int = 0
    name: bytes = b""
    target: tuple[int, bytes] | None = None
    detail: str = ""
    pid: int = 0


_BY_NAME: Final = frozenset({"lookup", "create", "mknod", "mkdir", "symlink", "unlink", "rmdir"})
_BY_FILE: Final = frozenset({"read", "write", "flush", "release", "fsync"})
_BY_DIRECTORY: Final = frozenset({"readdir", "releasedir", "fsyncdir"})
_XATTR: Final = frozenset({"getxattr", "setxattr", "removexattr"})


def subject_of(call: str, args: tuple[Any, ...], handles: Handles) -> Subject:
    """What a handler's arguments are about."""
    pid = getattr(args[-1], "pid", 0) if args else 0
    if call in _BY_NAME:
        return Subject(args[0], args[1], pid=pid)
    if call in _BY_FILE or call in _BY_DIRECTORY:
        try:
            known = handles.file if call in _BY_FILE else handles.directory
            ino = known(args[0]).ino
        except FileError:
            ino = 0
        return Subject(ino, detail=_place(call, args))
    if call == "rename":
        return Subject(args[0], args[1], target=(args[2], args[3]), pid=pid)
    if call == "link":
        return Subject(args[0], target=(args[1], args[2]), pid=pid)
    if call == "forget":
        return Subject(detail=f"{len(args[0])} inodes")
    if call == "statfs":
        return Subject(pid=pid)
    detail = args[1].decode("utf-8", "backslashreplace") if call in _XATTR else ""
    return Subject(args[0], detail=detail, pid=pid)


def _place(call: str, args: tuple[Any, ...]) -> str:
    """Which part of a file is meant."""
    if call == "read":
        return f"{args[2]} at {args[1]}"
    if call == "write":
        return f"{len(args[2])} at {args[1]}"
    return f"from {args[1]}" if call == "readdir" else ""


def call_of(
    name: str, subject: Subject, times_ns: tuple[int, int], result: Any, number: int
) -> Call:
    """The call that a request was, now that it is answered.

    Args:
        times_ns: when it began, and how long it took.
        result: of the handler; None if it has raised an error.
        number: the errno of that, or 0.
    """
    found, length = 0, -1
    if isinstance(result, tuple):  # create
        result = result[1]
    if isinstance(result, pyfuse3.EntryAttributes):
        found = result.st_ino
        if name == "lookup" and not found:
            number = errno.ENOENT
    elif name == "read" and result is not None:
        length = len(result)
    elif name == "write" and result is not None:
        length = result
    ino, of, target, detail, pid = subject
    return Call(*times_ns, name, ino, of, target, detail, pid, found, length, number)
