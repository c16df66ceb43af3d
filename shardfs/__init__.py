"""A disk as a directory: files kept as shards in an append-only, crash-consistent store.

    with shardfs.open("disk.img") as disk:
        print(disk.listdir("/"))

Role: the package's version, the refusal to run without assertions, and the door for programs that
want the files on an unmounted device.

Invariants:
    I1. Assertions are on wherever shardfs runs. They guard frames before they are written and
        after they are read, so `python -O` would take a safety net away without a word.
    I2. Importing this loads none of the package's parts: `open` does, when it is called.

Not here: `from shardfs.engine import Store` is the key-value store's door, `shardfs.cli.main` the
command's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardfs.library.disk import Disk

    __version__: str

__all__ = ["__version__", "open"]

if not __debug__:
    raise RuntimeError(
        "shardfs needs its assertions: start Python without -O and unset PYTHONOPTIMIZE"
    )


def __getattr__(name: str) -> str:
    """The version: what looks it up takes long to load, and few ask."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("shardfs")
    except PackageNotFoundError:  # a source tree on sys.path that was never installed
        return "0+uninstalled"


def open(device: str | os.PathLike[str], *, writable: bool = False, shared: bool = False) -> Disk:
    """The files on an unmounted device or image; see shardfs.library.Disk.

    Args:
        device: a block device or an image file.
        writable: changes are taken, and durable when the disk is closed.
        shared: other programs may read the device at the same time; nobody may write to it.

    Raises:
        ShardfsError: it cannot be opened; the message says why.
    """
    from shardfs.library.disk import Disk

    return Disk(device, writable=writable, shared=shared)
