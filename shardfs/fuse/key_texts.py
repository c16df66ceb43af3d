"""What a key of the tree is about, in words.

Role: for people who look at the tree itself.

Invariants:
    I1. Any bytes have a text: what is no key of the file system is shown as it is.

Not here: what stands under a key (records.py).
"""

from __future__ import annotations

import os
from contextlib import suppress

from shardfs.errors import CorruptionError
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    FACT_KEY,
    NAME_PAGE_PREFIX,
    NAMES_KEY,
    ORPHAN_PREFIX,
    SCRUB_KEY,
    TRUNCATION_PREFIX,
    decode_entry_key,
    decode_file_key,
    decode_marker_key,
    decode_name_page_key,
)

_SHOWN_BYTES_MAX = 32
_SINGLE_KEYS = {
    FACT_KEY: "file system facts",
    NAMES_KEY: "mark that all names are in name pages",
    SCRUB_KEY: "how far scrubbing has come",
}


def key_text(key: bytes) -> str:
    """The key in words: "inode 12", "shard 12.0", "name a.txt in directory 5"."""
    if key in _SINGLE_KEYS:
        return _SINGLE_KEYS[key]
    with suppress(CorruptionError):
        if key.startswith(ENTRY_PREFIX):
            parent, _, name = decode_entry_key(key)
            return f"name {os.fsdecode(name)} in directory {parent}"
        if key.startswith(ORPHAN_PREFIX):
            return f"removed inode {decode_marker_key(key)}"
        if key.startswith(TRUNCATION_PREFIX):
            return f"truncation of inode {decode_marker_key(key)}"
        if key.startswith(NAME_PAGE_PREFIX):
            return f"name page {decode_name_page_key(key)}"
        about = decode_file_key(key)
        if about.shard is not None:
            return f"shard {about.ino}.{about.shard}"
        if about.xattr is not None:
            return f"attribute {os.fsdecode(about.xattr)} of inode {about.ino}"
        return f"inode {about.ino}"
    shown = key[:_SHOWN_BYTES_MAX].hex()
    return f"key {shown}" + ("..." if len(key) > _SHOWN_BYTES_MAX else "")
