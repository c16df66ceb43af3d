"""What a file system shows, path by path, for a model to judge; and how clients name things.

Role: walks a file system as a program would: listings, attributes, contents.

Invariants:
    I1. The same names list in the same order however often they are walked.

Not here: judging (models.file_model).
"""

from __future__ import annotations

import stat
from typing import Final

from shardfs.checking.conformance.file_alphabet import CLIENTS_MAX, OFFSETS_END
from shardfs.checking.models.file_model import Found
from shardfs.checking.models.namespace_model import Kind
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.listing import Listing
from shardfs.limits import BLOCK_BYTES

FILE_MODE: Final = stat.S_IFREG | 0o644
DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755
SYMLINK_MODE: Final = stat.S_IFLNK | 0o777
_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
}
_SUFFIXES: Final = ("", *map(str, range(1, CLIENTS_MAX)))


def kind_of(mode: int) -> Kind:
    """What a mode says of the type."""
    return _KINDS[stat.S_IFMT(mode)]


def names_of(path: str, client: int) -> list[bytes]:
    """The names along a path; the first tells the client."""
    if not path:
        return []
    first, *rest = path.split("/")
    return [name.encode() for name in (first + _SUFFIXES[client], *rest)]


def place_of(path: str, client: int) -> tuple[str, bytes]:
    """(directory, name) of a path."""
    return path.rpartition("/")[0], names_of(path, client)[-1]


def client_of(name: str) -> tuple[int, str]:
    """Whose name in the root directory this is, and what it is called there."""
    if name[1:] in _SUFFIXES:
        return _SUFFIXES.index(name[1:]), name[:1]
    return 0, name


async def list_names(file_system: FileSystem, ino: int) -> list[tuple[str, int]]:
    """(name, inode number) of everything in a directory, without the dots, as listed."""
    return await list_again(file_system.list_directory(ino))


async def list_again(listing: Listing) -> list[tuple[str, int]]:
    """As `list_names`, of an open directory from its start."""
    found: list[tuple[str, int]] = []
    position = 0
    while items := await listing.read(position):
        found += [(item.name.decode(), item.ino) for item in items if not item.is_dot]
        position = items[-1].next
    assert len({name for name, _ in found}) == len(found), f"listed twice: {found}"
    return found


async def find_trees(file_system: FileSystem, clients: int) -> list[dict[str, Found]]:
    """Each client's names, with all there is to see."""
    trees: list[dict[str, Found]] = [{} for _ in range(clients)]
    pending = []
    for name, ino in await list_names(file_system, ROOT_INO):
        client, plain = client_of(name)
        assert client < clients, f"{name!r} is there, and was never made"
        pending.append((trees[client], plain, ino))
    while pending:
        tree, path, ino = pending.pop()
        tree[path] = found = await _find(file_system, ino)
        if found.kind is Kind.DIRECTORY:
            for name, child in await list_names(file_system, ino):
                pending.append((tree, f"{path}/{name}", child))
    return trees


async def _find(file_system: FileSystem, ino: int) -> Found:
    inode = await file_system.namespace.inode(ino)
    xattrs = {}
    if inode.xattrs:
        for name in await file_system.xattrs.names(ino, privileged=True):
            xattrs[name.decode()] = bytes(await file_system.xattrs.get(ino, name))
    content = inode.target
    if inode.is_regular:
        content = bytes(await file_system.writeback.read(ino, 0, 2 * OFFSETS_END))
        assert len(content) == inode.size, (
            f"inode {ino} has a size of {inode.size} and reads as {len(content)} bytes"
        )
        require_used(ino, content, inode.used)
    mode = stat.S_IMODE(inode.mode)
    return Found(ino, kind_of(inode.mode), mode, inode.nlink, inode.mtime_ns, xattrs, content)


def require_used(ino: int, content: bytes, used: int) -> None:
    """What du(1) adds up: holes take nothing, and what was written is not zeros."""
    blocks_bytes = -(-len(content) // BLOCK_BYTES) * BLOCK_BYTES
    shown = len(content) - content.count(0)
    assert shown <= used <= blocks_bytes, (
        f"inode {ino} takes {used} bytes; of its {len(content)}, {shown} are not zeros"
    )
