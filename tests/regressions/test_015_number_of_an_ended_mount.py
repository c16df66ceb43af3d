"""Two mounts that had the same device number, one right after the other, got in each other's way.

The kernel gives the number of a mount that has ended to the next one at once, while the first
one's server is still storing what it has. The second one removed the first one's last word, and
its umount said that "the newest changes may be lost"; or it found the first one's socket alive
and had none of its own, so that it could not be unmounted in order; or the first one, at its end,
removed the second one's socket. Found by tests of several people that mounted on one machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from shardfs.fuse import control
from shardfs.fuse.control import ControlSocket, read_ending, server_pid
from shardfs.fuse.mounts import MountEntry
from shardfs.fuse.runtime import ending_name, socket_name

NUMBER = "0:77"
ENTRY = MountEntry(NUMBER, "/mnt", "fuse.shardfs", "disk", (), os.geteuid())


class Silent:
    """A conversation that nobody begins."""

    async def answer(self, request: control.Request) -> control.Answer:
        raise AssertionError

    async def aclose(self) -> None:
        """Nothing to do."""


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("SHARDFS_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(control, "find_mount", lambda path: ENTRY)
    return tmp_path


async def started(nursery: trio.Nursery, server: ControlSocket) -> trio.CancelScope:
    """Serve in a task; returns once the socket is there."""
    scope = trio.CancelScope()

    async def serve() -> None:
        with scope:
            await server.serve("/mnt", Silent)

    nursery.start_soon(serve)
    await trio.testing.wait_all_tasks_blocked()
    return scope


async def test_a_socket_belongs_to_the_newest_mount(runtime: Path) -> None:
    path = runtime / socket_name(NUMBER)
    async with trio.open_nursery() as nursery:
        first = await started(nursery, ControlSocket())
        inode = path.lstat().st_ino
        second = await started(nursery, ControlSocket())
        assert path.lstat().st_ino != inode
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert server_pid(ENTRY) == os.getpid(), "the second one's socket is still there"
        second.cancel()
    assert os.listdir(runtime) == []


async def test_a_last_word_waits_although_the_number_is_used_again(runtime: Path) -> None:
    word = runtime / ending_name(NUMBER, 1)
    word.write_text('{"status": 0, "message": "of the first"}')
    old = runtime / ending_name(NUMBER, 2)
    old.write_text("{}")
    os.utime(old, (1, 1))
    server = ControlSocket()
    async with trio.open_nursery() as nursery:
        (await started(nursery, server)).cancel()
    server.write_ending(1, "of the second")
    assert not old.exists()
    assert read_ending(ENTRY, os.getpid()) == (1, "of the second")
    assert read_ending(ENTRY, 1) == (0, "of the first")
    assert read_ending(ENTRY, 1) is None, "it is read once"
