"""The control socket of a mount: requests from the command line, answered beside the mount.

Protocol: a Unix stream socket, mode 0600 in a private directory (runtime.py). A request is one
line of JSON, an object with "request" and arguments; the answer is one line of JSON, either
{"ok": true, "result": {...}} or {"ok": false, "error": "one line", "kind": "exception name"}.
Requests of one connection are answered one after the other. What can be asked is listed in
inspection.py; the same requests are answered for an unmounted device without any socket. Names
that are not UTF-8 travel as lone surrogates (os.fsdecode).

Invariants:
    I1. No request ends the mount or waits for one that does not come: errors are answered,
        bugs are answered and logged, silent connections are dropped.
    I2. Everything is bounded: connections, the length of a request, the time between requests.
    I3. A mount's socket takes the place of one that is there already, and is removed by its own
        server only: living mounts have different numbers, so the other's mount has ended, though
        its server may still be storing what it has.

Not here: what the answers say (inspection.py), unmounting (mounts.py).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import trio

from shardfs import limits
from shardfs.errors import RemoteError, ShardfsError, UsageError
from shardfs.fuse.mounts import MountEntry, find_mount
from shardfs.fuse.runtime import (
    ending_name,
    find_file,
    forget_endings,
    runtime_directory,
    socket_name,
)

_log = logging.getLogger(__name__)

REQUEST_BYTES_MAX: Final = 64 * limits.KIB
ANSWER_BYTES_MAX: Final = 16 * limits.MIB
CONNECTIONS_MAX: Final = 16
SILENCE_S_MAX: Final = 600.0
ENDINGS_KEPT_S: Final = 3600.0
"""For how long a mount's last word waits for an umount command that wants to read it."""
_RECEIVE_BYTES: Final = 64 * limits.KIB
_PEER_CREDENTIALS_BYTES: Final = 12

Request = dict[str, Any]
Answer = dict[str, Any]


class Conversation(Protocol):
    """Answers the requests of one connection, one after the other."""

    async def answer(self, request: Request) -> Answer:
        """The result of one request.

        Raises:
            ShardfsError: it cannot be answered.
        """

    async def aclose(self) -> None:
        """The connection has ended."""


class ControlSocket:
    """The server's side: one socket of one mount."""

    def __init__(self) -> None:
        self._directory = runtime_directory()
        self._device_number = ""
        self._places = trio.Semaphore(CONNECTIONS_MAX)

    async def serve(self, mountpoint: str, begin: Callable[[], Conversation]) -> None:
        """Answer until cancelled. Requires: the mount is in place.

        Args:
            mountpoint: absolute path.
            begin: makes what answers a new connection.
        """
        entry = find_mount(mountpoint)
        if entry is None:
            raise UsageError(f"nothing is mounted at {mountpoint}")
        self._device_number = entry.device_number
        path = self._directory / socket_name(entry.device_number)
        forget_endings(self._directory, older_than_s=ENDINGS_KEPT_S)
        listener = _bind(path)
        own = path.lstat().st_ino
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await self._places.acquire()
                    connection = await next_connection(listener, "control socket")
                    nursery.start_soon(self._converse, connection, begin)
        finally:
            listener.close()
            with suppress(FileNotFoundError):
                if path.lstat().st_ino == own:
                    path.unlink()

    def write_ending(self, status: int, message: str) -> None:
        """Leave word of how the mount ended, for the umount command that waits for it.

        Args:
            status: the server's exit status.
            message: one line; empty if all is well.
        """
        if not self._device_number:
            return
        path = self._directory / ending_name(self._device_number, os.getpid())
        text = json.dumps({"status": status, "message": message})
        try:
            path.write_text(text, encoding="ascii")
        except OSError as error:
            _log.error("cannot write %s: %s", path, error)

    async def _converse(
        self, connection: trio.socket.SocketType, begin: Callable[[], Conversation]
    ) -> None:
        stream = trio.SocketStream(connection)
        conversation = begin()
        try:
            lines = LineReader(stream, REQUEST_BYTES_MAX)
            while True:
                with trio.move_on_after(SILENCE_S_MAX) as silence:
                    line = await lines.next()
                if silence.cancelled_caught or not line:
                    return
                with trio.move_on_after(SILENCE_S_MAX):
                    await stream.send_all(await answer_line(conversation, line))
        except (trio.BrokenResourceError, trio.ClosedResourceError, UsageError) as error:
            _log.info("control connection dropped: %s", error)
        finally:
            self._places.release()
            connection.close()
            with trio.move_on_after(1, shield=True):
                await conversation.aclose()


async def next_connection(listener: trio.socket.SocketType, name: str) -> trio.socket.SocketType:
    """The next connection to a socket, whatever goes wrong with others.

    Args:
        name: of the socket, for the log.
    """
    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as error:
            _log.info("%s: %s", name, error)
            await trio.sleep(1)
            continue
        return connection


async def answer_line(conversation: Conversation, line: bytes) -> bytes:
    """The answer to one line, as a line; never an exception (I1)."""
    try:
        request = json.loads(line)
        if not isinstance(request, dict) or not isinstance(request.get("request"), str):
            raise UsageError('a request is a JSON object with a text "request"')
        answer = {"ok": True, "result": await conversation.answer(request)}
        return json.dumps(answer).encode("ascii") + b"\n"
    except ShardfsError as error:
        return _refusal(str(error), type(error).__name__)
    except (ValueError, RecursionError) as error:
        return _refusal(f"not a request: {error}", UsageError.__name__)
    except Exception as error:
        _log.error("a control request met a bug", exc_info=error)
        return _refusal(f"unexpected {type(error).__name__}; see the log of the mount", "")


def _refusal(message: str, kind: str) -> bytes:
    answer = {"ok": False, "error": message, "kind": kind}
    return json.dumps(answer).encode("ascii") + b"\n"


class LineReader:
    """Lines of a stream, each at most `length_max` bytes long."""

    def __init__(self, stream: trio.abc.ReceiveStream, length_max: int) -> None:
        self._stream = stream
        self._length_max = length_max
        self._buffer = bytearray()

    async def next(self) -> bytes:
        """The next line without its end; nothing at the end of the stream.

        Raises:
            UsageError: a line is too long.
        """
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            searched = len(self._buffer)
            if searched > self._length_max:
                raise UsageError(f"a line is longer than {self._length_max} bytes")
            data = await self._stream.receive_some(_RECEIVE_BYTES)
            if not data:
                return b""
            self._buffer += data


def _bind(path: Path) -> trio.socket.SocketType:
    """A listening socket at the path, in place of one that is there (I3)."""
    # A shorter name than the other: the path of a socket may have 107 bytes only.
    temporary = path.with_name(f"{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(temporary))
        temporary.chmod(0o600)
        listener.listen(CONNECTIONS_MAX)
        temporary.rename(path)
        return trio.socket.from_stdlib_socket(listener)
    except BaseException:  # whatever ended it, nobody else knows the socket
        listener.close()
        raise


def server_pid(entry: MountEntry) -> int | None:
    """The process that serves a mount, or None if its control socket does not tell.

    The kernel itself answers, so it works although the server hangs.
    """
    path = find_file(entry.owner_uid, socket_name(entry.device_number))
    if path is None:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
            data = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS_BYTES)
        except OSError:
            return None
    return int.from_bytes(data[:4], sys.byteorder, signed=True) or None


def read_ending(entry: MountEntry, pid: int) -> tuple[int, str] | None:
    """How a mount has ended: (exit status, message); None if it left no word. Reads it once.

    Args:
        entry: the mount, as it was.
        pid: the process that served it.
    """
    path = find_file(entry.owner_uid, ending_name(entry.device_number, pid))
    if path is None:
        return None
    try:
        ending = json.loads(path.read_text(encoding="ascii"))
        path.unlink(missing_ok=True)
        return int(ending["status"]), str(ending["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class ControlClient:
    """The command line's side of a connection; see `connect`."""

    def __init__(self, stream: trio.SocketStream, mountpoint: str) -> None:
        self._stream = stream
        self._mountpoint = mountpoint
        self._lines = LineReader(stream, ANSWER_BYTES_MAX)

    async def answer(self, request: Request) -> Answer:
        """The mount's answer to a request.

        Raises:
            RemoteError: the mount refused it.
            UsageError: the mount has ended meanwhile.
        """
        try:
            await self._stream.send_all(json.dumps(request).encode("ascii") + b"\n")
            line = await self._lines.next()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            line = b""
        if not line:
            self._raise_gone()
        answer = json.loads(line)
        if not answer["ok"]:
            raise RemoteError(answer["error"], answer["kind"])
        result: Answer = answer["result"]
        return result

    def _raise_gone(self) -> NoReturn:
        raise UsageError(f"the mount at {self._mountpoint} has ended")


@asynccontextmanager
async def connect(entry: MountEntry) -> AsyncIterator[ControlClient]:
    """A connection to the server of a mount, for the body.

    Raises:
        UsageError: it cannot be reached.
    """
    path = find_file(entry.owner_uid, socket_name(entry.device_number))
    if path is None:
        raise UsageError(
            f"the mount at {entry.mountpoint} has no control socket that this user may use; "
            "ask as the user who mounted it"
        )
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise UsageError(
            f"the server of {entry.mountpoint} does not answer ({error.strerror}); if it was "
            "killed, mount again: a stale mount point is cleaned up"
        ) from error
    try:
        yield ControlClient(stream, entry.mountpoint)
    finally:
        stream.socket.close()
