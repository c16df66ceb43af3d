"""Puts names in place of the keys and numbers that findings are about.

Role: what `fsck` shows its user: paths, inodes, and bytes of files.

Not here: finding (fsck.py), files of which the tree says nothing any more (lost_names.py).
"""

from __future__ import annotations

import os
from dataclasses import replace

from shardfs import limits
from shardfs.engine.findings import Finding, Report
from shardfs.errors import CorruptionError, ShardfsError
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.keys import decode_file_key
from shardfs.fuse.paths import find_paths


async def name_files(store: StoreDoor, report: Report) -> None:
    """Put paths, inodes and bytes of files in place of the keys that findings are about."""
    wanted = {ino for finding in report.findings if (ino := _ino_of(finding)) is not None}
    if not wanted:
        return
    try:
        paths = {ino: names[0] for ino, names in (await find_paths(store, wanted)).items()}
    except ShardfsError as error:
        report.notes.append(f"the files cannot be named: {error}")
        paths = {}
    report.findings[:] = [_named(finding, paths) for finding in report.findings]


def _ino_of(finding: Finding) -> int | None:
    if finding.where.startswith("inode "):
        return int(finding.where.removeprefix("inode "))
    if finding.key is None:
        return None
    try:
        return decode_file_key(finding.key).ino
    except CorruptionError:
        return None


def _named(finding: Finding, paths: dict[int, str]) -> Finding:
    ino = _ino_of(finding)
    if ino is None:
        return finding
    where = f"{paths[ino]} (inode {ino})" if ino in paths else f"inode {ino}"
    if finding.key is None:
        return replace(finding, where=where)
    about = decode_file_key(finding.key)
    if about.xattr is not None:
        where += f" attribute {os.fsdecode(about.xattr)!r}"
    if about.shard is None:
        return replace(finding, where=where)
    if finding.start is None or finding.length is None:
        return replace(finding, where=f"{where} shard {about.shard}")
    start = about.shard * limits.SHARD_BYTES + finding.start
    where = f"{where} bytes {start} to {start + finding.length - 1}"
    return replace(finding, where=where, start=start)
