"""The list of decoders (checking.decoders) is complete.

Whatever takes stored bytes apart is on it: functions of the engine and of the file system that
are named after decoding, and those that unpack integers, however they are named.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from shardfs.checking.decoders import decoders
from tests.tidy.sources import Module, package_modules, sample

ROOMS = ("engine", "fuse")
NAMED_LIKE_DECODERS = re.compile(r"(decode|unpack|parse|scan_frames|load_bytes)")
UNPACKING = frozenset({"unpack", "unpack_many", "unpack_from", "iter_unpack", "from_bytes"})

EXEMPT = {
    "layout.Table.unpack": "the one reader of fixed structures, which every decoder goes through",
    "layout.Table.unpack_many": "likewise",
    "tables._decode_inode_at": "adds the key to what decode_inode says",
    "tables._decode_entry_at": "adds the key to what decode_entry says",
    "superblock_record.Identity.__post_init__": "takes a number from the uuid it made",
    "superblock_record._decode_identity": "the part of decode_record that is remembered",
    "recording.RecordingReader._decode": "a part of RecordingReader",
    "recording.RecordingReader._decode_request": "likewise",
    "promises._decode_names": "a part of decode_mark",
    "dissection.Dissection.table": "a part of dissect_frame",
    "dissection.Dissection.locator": "a part of dissect_frame",
    "dissection._dissect_block": "a part of dissect_frame",
    "raw_store.RawStore.frame_at": "takes the lengths of a header, to read as much",
    "tree_requests._index_of": "of the bound of a range of keys, which need not be a key",
    "shard_requests.parse_shard_id": "of the command line, not of stored bytes",
    "probe._probe_ext": "names foreign formats and refuses nothing; see tests/engine/test_probe.py",
    "control.server_pid": "what the kernel says of a socket",
    "salvage._frame_at": "decode_head, and the store's number beside it",
    "reconstruction._decoded": "decode_inode; None for what it refuses",
    "handshake._number": "of messages between the kernel and libfuse",
}


def functions(module: Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a module as "module.Class.function"."""

    def below(
        node: ast.AST, path: str
    ) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}.{child.name}", child
            elif isinstance(child, ast.ClassDef):
                yield from below(child, f"{path}.{child.name}")

    yield from below(module.tree, module.name.rpartition(".")[2])


def takes_bytes_apart(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """By its name, or by what it calls."""
    if NAMED_LIKE_DECODERS.search(function.name):
        return True
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Attribute) and call.attr in UNPACKING for call in calls)


def unlisted(module: Module, listed: set[str]) -> list[str]:
    """Decoders of a module that nothing checks."""
    return [
        f"{module.at(function)}: {name} takes stored bytes apart: list it in checking/decoders.py"
        for name, function in functions(module)
        if takes_bytes_apart(function)
        and name not in listed
        and name.rpartition(".")[0] not in listed
        and name not in EXEMPT
    ]


def test_every_decoder_is_listed() -> None:
    listed = {name.partition(",")[0] for name in decoders()}
    modules = [module for module in package_modules() if module.room in ROOMS]
    assert [finding for module in modules for finding in unlisted(module, listed)] == []


def test_what_is_listed_or_exempt_exists() -> None:
    names = {
        name
        for module in package_modules()
        if module.room in ROOMS
        for name, _ in functions(module)
    }
    names |= {name.rpartition(".")[0] for name in names}
    listed = {name.partition(",")[0] for name in decoders()}
    assert listed | EXEMPT.keys() <= names


@pytest.mark.parametrize(
    "source",
    [
        "def decode_thing(data): ...",
        "class Thing:\n    def decode(self, data): ...",
        "def read_thing(data):\n    return TABLE.unpack(data)",
        "async def number(data):\n    return int.from_bytes(data, 'little')",
    ],
)
def test_an_unlisted_decoder_is_found(source: str) -> None:
    assert unlisted(sample("shardfs.engine.thing", source), set())
