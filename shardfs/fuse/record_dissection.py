"""Takes the file system's records apart, for engine/dissection.py.

Role: says by an entry's key which record its value is, and names its fields.

Invariants:
    I1. Any bytes give fields and troubles, as there.

Not here: what records mean (records.py).
"""

from __future__ import annotations

from shardfs.engine.dissection import Dissection
from shardfs.engine.layout import Table
from shardfs.errors import CorruptionError
from shardfs.fuse import access_lists
from shardfs.fuse.key_texts import key_text
from shardfs.fuse.keys import ENTRY_PREFIX, FACT_KEY, NAME_PAGE_PREFIX, FileKey, decode_file_key
from shardfs.fuse.records import (
    ACCESS_ENTRY,
    ACCESS_LIST,
    ENTRY,
    FACTS,
    INODE,
    LINKED_NAME,
    NAME_PAGE,
    NAMED_INODE,
    decode_entry,
    decode_facts,
    decode_inode,
    decode_name_page,
)


def dissection_of(data: bytes) -> Dissection:
    """A dissection of these bytes that knows the file system's keys and records."""
    return Dissection(data, key_text, dissect_record, dissect_payload)


def dissect_record(dissection: Dissection, key: bytes, start: int, end: int) -> None:
    """Take the record in bytes [start, end) apart, by its key."""
    data = dissection.data[start:end]
    dissection.at = start
    try:
        if key.startswith(ENTRY_PREFIX):
            dissection.table(ENTRY)
            decode_entry(data)
        elif key == FACT_KEY:
            dissection.table(FACTS)
            decode_facts(data)
        elif (about := _about(key)) is not None and about.shard is None:
            if about.xattr is None:
                _dissect_inode(dissection, data, end)
            elif about.xattr in access_lists.NAMES:
                _dissect_access_list(dissection, end)
    except CorruptionError as error:
        dissection.trouble(f"{key_text(key)}: {error}")
    dissection.raw(dissection.at, end, "record", "value")
    dissection.at = end


def dissect_payload(dissection: Dissection, owner: bytes) -> None:
    """Take the payload of a data frame apart: a name page, or bytes of a file."""
    start, end = dissection.at, len(dissection.data)
    if owner.startswith(NAME_PAGE_PREFIX):
        try:
            _dissect_name_page(dissection)
            decode_name_page(dissection.data[start:end])
        except CorruptionError as error:
            dissection.trouble(f"{key_text(owner)}: {error}")
    dissection.raw(dissection.at, end, "frame", "payload")
    dissection.at = end


def _dissect_name_page(dissection: Dissection) -> None:
    page = dissection.table(NAME_PAGE)
    for number in range(page["inode_count"]):
        name = f"{NAMED_INODE.name} {number}"
        inode = dissection.table(NAMED_INODE, number)
        inode_end = dissection.at + inode["inode_bytes"]
        dissection.table(INODE)
        if dissection.at < inode_end:
            dissection.take(inode_end - dissection.at, INODE.name, "target", _text)
        for each in range(inode["name_count"]):
            linked = dissection.table(LINKED_NAME, each)
            dissection.take(linked["name_bytes"], name, "name", _text)


def _about(key: bytes) -> FileKey | None:
    try:
        return decode_file_key(key)
    except CorruptionError:
        return None


def _dissect_inode(dissection: Dissection, data: bytes, end: int) -> None:
    dissection.table(INODE)
    if dissection.at < end:
        dissection.take(end - dissection.at, INODE.name, "target", _text)
    decode_inode(data)


def _dissect_access_list(dissection: Dissection, end: int) -> None:
    dissection.table(ACCESS_LIST)
    _dissect_all(dissection, ACCESS_ENTRY, end)


def _dissect_all(dissection: Dissection, table: Table, end: int) -> None:
    number = 0
    while dissection.at < end:
        dissection.table(table, number)
        number += 1


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
