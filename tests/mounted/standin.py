"""A stand-in for the shardfs command, to test the tests' own machinery with a real mount.

Role: `mount` serves one empty directory, `umount` and `fsck` do what they must. The options name
a misbehaviour: "hang" stops answering once mounted, "trouble" logs a warning, "status" ends with
a status that is not 0, "silent" never mounts.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time

import pyfuse3
import trio


class EmptyDirectory(pyfuse3.Operations):
    """A root directory that holds nothing; lookups of "hang" never return."""

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
        entry.st_nlink = 2
        entry.attr_timeout = 0
        entry.st_uid = os.geteuid()
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name == b"hang":
            # Not an await: the whole server stops, as a bug would make it.
            time.sleep(3600)  # noqa: ASYNC251
        raise pyfuse3.FUSEError(2)


def main(arguments: list[str]) -> int:
    """Obey one command line."""
    command, first, *rest = arguments
    if command == "umount":
        return subprocess.run(["fusermount3", "-u", first], check=False).returncode
    if command != "mount":
        return 0
    options = rest[-1].split(",")
    if "silent" in options:
        return 7
    pyfuse3.init(EmptyDirectory(), rest[0], {"fsname=standin"})
    if "trouble" in options:
        print("WARNING: the stand-in has trouble", file=sys.stderr, flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)
    return 9 if "status" in options else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
