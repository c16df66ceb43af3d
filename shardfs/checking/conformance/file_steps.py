"""What each operation of a client does: once on the model, once on the file system.

Role: one short function for each of file_alphabet.CLIENT_OPERATIONS. Its arguments are the client,
three numbers, and all clients.

Not here: comparing and excusing (file_client.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from shardfs.checking.conformance.file_alphabet import PATHS, RENAME_FLAGS, XATTRS
from shardfs.checking.conformance.file_client import FileClient, OpenFile
from shardfs.checking.conformance.file_trees import (
    DIRECTORY_MODE,
    FILE_MODE,
    SYMLINK_MODE,
    client_of,
    kind_of,
    list_again,
)
from shardfs.checking.models.namespace_model import Kind, Node
from shardfs.fuse.namespace import Update

Clients = Sequence[FileClient]
Step = Callable[[FileClient, int, int, int, Clients], Awaitable[None]]

_PERMISSIONS_END: Final = 0o1000
_MTIME_FIRST_NS: Final = 10**18
_XATTR_BYTES_END: Final = 65537
_ROUNDS_MAX: Final = 24
_CHURNED_BYTES: Final = 192 * 1024
_STAYING_BYTES: Final = 3 * 1024


def _path(number: int) -> str:
    return PATHS[number % len(PATHS)]


def _directory_path(number: int) -> str:
    return (*PATHS, "")[number % (len(PATHS) + 1)]


# --- looking


async def lookup(client: FileClient, path: int, *_: object) -> None:
    """stat(2)."""
    where = _path(path)
    answers = await client.both(lambda: client.model.lookup(where), lambda: client.resolve(where))
    if answers is None:
        return
    node, ino = answers
    inode = await client.file_system.namespace.inode(ino)
    assert kind_of(inode.mode) is node.kind, f"{where} is a {kind_of(inode.mode)}"
    if node.kind is Kind.FILE and inode.size != len(client.model.read(node)):
        await client.settle(node, ino)


async def read(client: FileClient, path: int, offset: int, length: int, _: object) -> None:
    """pread(2)."""
    where = _path(path)
    answers = await client.both(
        lambda: client.model.file(where), lambda: client.resolve_file(where)
    )
    if answers is not None:
        await client.compare(*answers, offset, length)


async def list_directory(client: FileClient, path: int, *_: object) -> None:
    """rewinddir(3) and readdir(3): a client keeps each directory open that it has listed."""
    where = _directory_path(path)

    async def ask() -> list[str]:
        ino = await client.resolve_directory(where)
        listing = client.listings.get(ino)
        if listing is None:
            listing = client.listings[ino] = client.file_system.list_directory(ino)
        names = [name for name, _ in await list_again(listing)]
        if not where:
            owned = [client_of(name) for name in names]
            names = [name for number, name in owned if number == client.number]
        return sorted(names)

    answers = await client.both(lambda: client.model.list(where), ask)
    if answers is not None:
        assert answers[0] == answers[1], f"{where!r} lists {answers[1]}, not {answers[0]}"


# --- names


async def _make(client: FileClient, where: str, mode: int, target: str = "") -> None:
    place = await client.place(where)
    await client.file_system.namespace.create(*place, mode, 0, 0, target=target.encode())


async def create(client: FileClient, path: int, *_: object) -> None:
    """open(2) with O_CREAT and O_EXCL."""
    where = _path(path)
    await client.both(lambda: client.model.create(where), lambda: _make(client, where, FILE_MODE))


async def mkdir(client: FileClient, path: int, *_: object) -> None:
    """mkdir(2)."""
    where = _path(path)
    make = lambda: _make(client, where, DIRECTORY_MODE)  # noqa: E731
    await client.both(lambda: client.model.mkdir(where), make)


async def symlink(client: FileClient, path: int, target: int, *_: object) -> None:
    """symlink(2)."""
    where, aim = _path(path), _path(target)
    await client.both(
        lambda: client.model.symlink(where, aim),
        lambda: _make(client, where, SYMLINK_MODE, aim),
    )


async def link(client: FileClient, old: int, new: int, *_: object) -> None:
    """link(2)."""

    async def ask() -> None:
        ino = await client.resolve(_path(old))
        await client.file_system.namespace.link(ino, *await client.place(_path(new)))

    await client.both(lambda: client.model.link(_path(old), _path(new)), ask)


async def unlink(client: FileClient, path: int, *_: object) -> None:
    """unlink(2)."""
    where = _path(path)

    async def ask() -> None:
        await client.file_system.namespace.unlink(*await client.place(where))

    await client.both(lambda: client.model.unlink(where), ask, takes_space=False)


async def rmdir(client: FileClient, path: int, *_: object) -> None:
    """rmdir(2)."""
    where = _path(path)

    async def ask() -> None:
        await client.file_system.namespace.rmdir(*await client.place(where))

    await client.both(lambda: client.model.rmdir(where), ask, takes_space=False)


async def rename(client: FileClient, old: int, new: int, flags: int, _: object) -> None:
    """renameat2(2)."""
    flag = RENAME_FLAGS[flags % len(RENAME_FLAGS)]

    async def ask() -> None:
        places = (*await client.place(_path(old)), *await client.place(_path(new)))
        await client.file_system.namespace.rename(*places, flag)

    await client.both(
        lambda: client.model.rename(_path(old), _path(new), flag), ask, takes_space=False
    )


# --- attributes


async def _amend(client: FileClient, where: str, update: Update) -> None:
    ino = await client.resolve(where)
    await client.file_system.namespace.set_attributes(ino, update, privileged=True)


async def mode(client: FileClient, path: int, bits: int, *_: object) -> None:
    """chmod(2)."""
    where, bits = _path(path), bits % _PERMISSIONS_END
    await client.both(
        lambda: client.model.set_mode(where, bits),
        lambda: _amend(client, where, Update(mode=bits)),
    )


async def time(client: FileClient, path: int, number: int, *_: object) -> None:
    """utimensat(2)."""
    where, mtime_ns = _path(path), _MTIME_FIRST_NS + number
    await client.both(
        lambda: client.model.set_mtime(where, mtime_ns),
        lambda: _amend(client, where, Update(mtime_ns=mtime_ns)),
    )


async def xattr_set(client: FileClient, path: int, number: int, length: int, _: object) -> None:
    """setxattr(2)."""
    where, name = _path(path), XATTRS[number % len(XATTRS)]
    value = client.data(length)[:_XATTR_BYTES_END]

    async def ask() -> None:
        await client.file_system.xattrs.set(await client.resolve(where), name.encode(), value)

    await client.both(lambda: client.model.set_xattr(where, name, value), ask)


async def xattr_get(client: FileClient, path: int, number: int, *_: object) -> None:
    """getxattr(2)."""
    where, name = _path(path), XATTRS[number % len(XATTRS)]

    async def ask() -> bytes:
        ino = await client.resolve(where)
        return bytes(await client.file_system.xattrs.get(ino, name.encode()))

    answers = await client.both(lambda: client.model.get_xattr(where, name), ask)
    assert answers is None or answers[0] == answers[1], f"{name} of {where} has another value"


async def xattr_remove(client: FileClient, path: int, number: int, *_: object) -> None:
    """removexattr(2)."""
    where, name = _path(path), XATTRS[number % len(XATTRS)]

    async def ask() -> None:
        await client.file_system.xattrs.remove(await client.resolve(where), name.encode())

    await client.both(lambda: client.model.remove_xattr(where, name), ask, takes_space=False)


# --- contents


async def write(client: FileClient, path: int, offset: int, length: int, _: object) -> None:
    """pwrite(2)."""
    where = _path(path)
    answers = await client.both(
        lambda: client.model.file(where), lambda: client.resolve_file(where)
    )
    if answers is not None:
        await client.write(*answers, offset, client.data(length))


async def append(client: FileClient, path: int, length: int, *_: object) -> None:
    """write(2) with O_APPEND."""
    where = _path(path)
    answers = await client.both(
        lambda: client.model.file(where), lambda: client.resolve_file(where)
    )
    if answers is not None:
        end = len(client.model.read(answers[0]))
        await client.write(*answers, end, client.data(length))


async def truncate(client: FileClient, path: int, length: int, *_: object) -> None:
    """truncate(2)."""
    where = _path(path)
    answers = await client.both(
        lambda: client.model.file(where), lambda: client.resolve_file(where)
    )
    if answers is not None:
        await client.truncate(*answers, length)


async def flush(client: FileClient, path: int, *_: object) -> None:
    """What the flusher does by and by: a file's content goes to the store."""
    where = _path(path)
    answers = await client.both(
        lambda: client.model.file(where), lambda: client.resolve_file(where)
    )
    if answers is not None:
        node, ino = answers
        await client.both(
            lambda: client.model.store(node),
            lambda: client.file_system.writeback.flush(ino),
            takes_space=False,
        )


async def fsync(client: FileClient, path: int, *_: object) -> None:
    """fsync(2) and fdatasync(2), which are the same."""
    where = _path(path)
    await client.sync(lambda: client.model.file(where), lambda: client.resolve_file(where))


async def fsyncdir(client: FileClient, path: int, *_: object) -> None:
    """fsync(2) of a directory."""
    where = _directory_path(path)
    await client.sync(
        lambda: client.model.directory(where), lambda: client.resolve_directory(where)
    )


# --- open files


async def open_file(client: FileClient, path: int, *_: object) -> None:
    """open(2)."""
    where = _path(path)
    answers = await client.both(
        lambda: client.model.file(where), lambda: client.resolve_file(where)
    )
    if answers is not None:
        client.open(*answers)


def _handle(client: FileClient, number: int) -> OpenFile | None:
    return client.handles[number % len(client.handles)] if client.handles else None


async def handle_read(client: FileClient, number: int, offset: int, length: int, _: object) -> None:
    """pread(2) of a file that may have no name any more."""
    handle = _handle(client, number)
    if handle is not None:
        await client.compare(handle.node, handle.ino, offset, length)


async def handle_write(
    client: FileClient, number: int, offset: int, length: int, _: object
) -> None:
    """pwrite(2) to a file that may have no name any more."""
    handle = _handle(client, number)
    if handle is not None:
        await client.write(handle.node, handle.ino, offset, client.data(length))


async def handle_truncate(client: FileClient, number: int, length: int, *_: object) -> None:
    """ftruncate(2) of a file that may have no name any more."""
    handle = _handle(client, number)
    if handle is not None:
        await client.truncate(handle.node, handle.ino, length)


async def handle_fsync(client: FileClient, number: int, *_: object) -> None:
    """fsync(2) of a file that may have no name any more."""
    handle = _handle(client, number)
    if handle is not None:

        async def ino(handle: OpenFile = handle) -> int:
            return handle.ino

        node = handle.node
        await client.sync(lambda: node, ino)


async def close(client: FileClient, number: int, *_: object) -> None:
    """close(2); a file without a name is gone with its last handle."""
    handle = _handle(client, number)
    if handle is not None:
        client.handles.remove(handle)
        client.file_system.handles.release_file(handle.number)


async def churn(client: FileClient, path: int, rounds: int, length: int, clients: Clients) -> None:
    """Parts of a file are written again and again, each for itself, and between them some that
    stay: extents are live in part."""
    where = _path(path)
    answers = await client.both(
        lambda: client.model.file(where), lambda: client.resolve_file(where)
    )
    if answers is None:
        return
    for number in range(min(rounds, _ROUNDS_MAX)):
        start = number * 7919 * 4 % _CHURNED_BYTES
        await write(client, path, start, length, clients)
        stays = client.circumstances.writes * _STAYING_BYTES % _CHURNED_BYTES
        await write(client, path, _CHURNED_BYTES + stays, _STAYING_BYTES, clients)
        await flush(client, path)
        if client.file_system.writeback.is_dirty(answers[1]):
            return  # A fault. Very many parts are not one batch: no model knows them.


async def remove_all(client: FileClient) -> None:
    """All that this client has made goes, what is open too."""
    while client.handles:
        await close(client, 0)
    names = client.model.tree.names
    for where in sorted((path for path in names if path), reverse=True):
        node = names[where]

        def expect(where: str = where, node: Node = node) -> None:
            (client.model.rmdir if node.kind is Kind.DIRECTORY else client.model.unlink)(where)

        async def ask(where: str = where, node: Node = node) -> None:
            namespace = client.file_system.namespace
            remove = namespace.rmdir if node.kind is Kind.DIRECTORY else namespace.unlink
            await remove(*await client.place(where))

        await client.both(expect, ask, takes_space=False)


STEPS: Final[dict[str, Step]] = {
    "lookup": lookup,
    "read": read,
    "list": list_directory,
    "create": create,
    "mkdir": mkdir,
    "symlink": symlink,
    "write": write,
    "append": append,
    "truncate": truncate,
    "unlink": unlink,
    "rmdir": rmdir,
    "link": link,
    "rename": rename,
    "mode": mode,
    "time": time,
    "xattr-set": xattr_set,
    "xattr-get": xattr_get,
    "xattr-remove": xattr_remove,
    "fsync": fsync,
    "fsyncdir": fsyncdir,
    "flush": flush,
    "open": open_file,
    "handle-read": handle_read,
    "handle-write": handle_write,
    "handle-truncate": handle_truncate,
    "handle-fsync": handle_fsync,
    "close": close,
    "churn": churn,
}
