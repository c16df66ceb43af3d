"""A disk as a directory: files kept as shards in an append-only, crash-consistent store.

Role: the package's version, and the refusal to run without assertions.

Invariants:
    I1. Assertions are on wherever shardfs runs. They guard frames before they are written and
        after they are read, so `python -O` would take a safety net away without a word.

Not here: any import of the package's parts; `from shardfs.engine import Store` is the library's
door and `shardfs.cli.main` the command's.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

if not __debug__:
    raise RuntimeError(
        "shardfs needs its assertions: start Python without -O and unset PYTHONOPTIMIZE"
    )

try:
    __version__ = version("shardfs")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0+uninstalled"
