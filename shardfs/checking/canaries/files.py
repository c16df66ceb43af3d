"""Mistakes in files and directories: buffered data, sizes, names, removed files.

Role: one part of the catalog; each mutant is as in canary.py.

Not here: the store below (the other parts).
"""

from __future__ import annotations

from typing import Final

from shardfs import limits
from shardfs.checking.canaries.canary import Canary
from shardfs.checking.canaries.planting import Edit, Setting
from shardfs.fuse import rename
from shardfs.fuse.dirty import DirtyRanges
from shardfs.fuse.file_reads import FileReads
from shardfs.fuse.files import Files
from shardfs.fuse.handles import Handles
from shardfs.fuse.listing import Listing
from shardfs.fuse.namespace import Namespace
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.staging import StagedStore
from shardfs.fuse.writeback import Writeback

CONTENT: Final = (
    Canary(
        "fsync-without-flush",
        "fsync makes durable what the store has, and leaves the file's buffered data where it is.",
        (Edit(Writeback.fsync, "await self.flush(ino)\n", ""),),
        ("files",),
    ),
    Canary(
        "fsync-without-sync",
        "fsync gives the file's data to the store, and does not wait until it is durable.",
        (
            Edit(
                Writeback.fsync,
                "await self._store.sync_key(inode_key(ino))",
                "await self._store.admit()",
            ),
        ),
        ("files",),
    ),
    Canary(
        "truncate-in-whole-blocks",
        "Truncation keeps the rest of the last block; when the file grows again, it shows.",
        (
            Edit(
                Files._truncate_now,
                "truncate(shard.pieces, max(0, length - index * SHARD_BYTES))",
                "truncate(shard.pieces, max(0, -(-length // limits.BLOCK_BYTES)"
                " * limits.BLOCK_BYTES - index * SHARD_BYTES))",
            ),
        ),
        ("files",),
    ),
    Canary(
        "truncate-forgets-dirty-data",
        "Truncation leaves buffered data beyond the new end to be written later.",
        (Edit(Writeback.truncate, "partial(self._dirty.forget, file, length)", "bool"),),
        ("files",),
    ),
    Canary(
        "size-before-data",
        "A write puts the new size into the store at once, the data later: after a crash there "
        "are zeros where nothing was written.",
        (
            Edit(
                Writeback._write_now,
                "before = ranges.memory_bytes",
                "before = ranges.memory_bytes\n"
                "change = self._tables.change()\n"
                "change.put_inode(ino, inode._replace(size=max(inode.size, offset + len(data))))\n"
                "change.commit()",
            ),
        ),
        ("files",),
    ),
    Canary(
        "overlap-taken-for-an-append",
        "A write that overlaps the end of buffered data is appended to it: the older bytes stay, "
        "the newer are shifted.",
        (
            Edit(
                DirtyRanges.write,
                "elif segments[-1].end == start:",
                "elif segments[-1].end >= start >= segments[-1].start:",
            ),
        ),
        ("files",),
    ),
    Canary(
        "older-write-wins",
        "An overwrite of buffered data keeps the older bytes behind it from its own start on.",
        (
            Edit(
                DirtyRanges._overwrite,
                "rests.append(segment.cut(end, segment.end))",
                "rest = segment.cut(segment.start, segment.start + segment.end - end)\n"
                "rests.append(_Segment(end, segment.end, rest.buffers))",
            ),
        ),
        ("files",),
    ),
    Canary(
        "hole-left-out",
        "Reading leaves out a hole between two pieces and appends it.",
        (
            Edit(
                FileReads._read_pieces,
                "parts.append(bytes(first - position))",
                "pass",
            ),
            Edit(
                FileReads._read_pieces,
                "if position < end:\n    parts.append(bytes(end - position))",
                "parts.append(bytes(end - start - sum(map(len, parts))))",
            ),
        ),
        ("files",),
    ),
)

NAMES: Final = (
    Canary(
        "rename-in-two-steps",
        "Renaming over a file removes that file first, in a batch of its own.",
        (
            Edit(
                Namespace.rename,
                "nameless = await self._tables.run",
                "if plan.replaced not in (None, plan.moved) and not flags:\n"
                "    replaced = await self._tables.inode(plan.replaced or 0)\n"
                "    if replaced is not None and not replaced.is_directory:\n"
                "        await self.unlink(new_parent, new_name)\n"
                "        await self._tables.store.sync()\n"
                "nameless = await self._tables.run",
            ),
        ),
        ("files",),
    ),
    Canary(
        "rename-without-its-content",
        "Renaming over a file does not give the new content to the store first: a crash leaves an "
        "empty file.",
        (
            Edit(
                Namespace.rename,
                "await self._writeback.flush(plan.moved)",
                "await self._tables.store.admit()",
            ),
        ),
        ("files",),
    ),
    Canary(
        "rename-frees-a-linked-file",
        "Renaming over one of a file's two names takes the file away from the other one.",
        (
            Edit(
                rename._replace,
                "nlink = 0 if entry.is_directory else inode.nlink - 1",
                "nlink = 0",
            ),
        ),
        ("files",),
    ),
    Canary(
        "unlink-frees-an-open-file",
        "A file that is open is freed with its last name.",
        (
            Edit(
                Handles._unused,
                "if self._orphans.is_held(ino) and not self.is_used(ino):",
                "if self._orphans.is_held(ino):",
            ),
        ),
        ("files",),
    ),
    Canary(
        "orphans-not-reaped",
        "Files that were removed while open, when the power failed, keep their space for ever.",
        (Edit(Orphans._reap_leftovers, "await self.reap_queued()", "self._queue.clear()"),),
        ("files",),
    ),
    Canary(
        "no-orphan-key",
        "Removing the last name does not note that the file is to be freed.",
        (
            Edit(
                Namespace._remove_now,
                "if inode.nlink == 0:\n    change.mark(orphan_key(ino))\n",
                "",
            ),
        ),
        ("files",),
    ),
    Canary(
        "fsync-without-what-is-staged",
        "fsync makes durable what the store has, and not the names that are staged before it.",
        (Edit(StagedStore.sync_key, "self.settle()\n", ""),),
        ("files",),
    ),
    Canary(
        "staged-changes-overtaken",
        "A file's data reach the store before the staged changes of names that were made earlier.",
        (Edit(StagedStore.apply, "self.settle()\n", ""),),
        ("files",),
    ),
    Canary(
        "listing-of-the-former-directory",
        "A listing goes on with entries read before the directory has changed.",
        (
            Edit(
                Listing.read,
                "page is None or page.directory != directory or not",
                "page is None or not",
            ),
            Edit(
                Listing._collect,
                "if directory is None or directory != page.directory:",
                "if directory is None:",
            ),
        ),
        ("files",),
    ),
    Canary(
        "listing-ends-with-a-full-page",
        "A page that is just full is taken for the last one.",
        (
            Setting(limits, "DIRECTORY_PAGE_ENTRIES", 3),
            Edit(
                Listing._load,
                "is_last = len(found) <= count",
                "is_last = len(found) <= count + 1",
            ),
        ),
        ("files",),
    ),
)

CANARIES: Final = (*CONTENT, *NAMES)
