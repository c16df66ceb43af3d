"""fuse/tracing.py: what a listener hears, that nobody pays for nothing, and that nobody waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyfuse3
import pytest
import trio

from shardfs.errors import UsageError
from shardfs.fuse import call_paths, tracing
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.mount_options import MountOptions
from shardfs.fuse.operations import Operations
from shardfs.fuse.tracing import Listener, TraceConversation, Tracer
from tests.fuse.harness import mounted

CONTEXT = pyfuse3.RequestContext()
MORE = {"request": "trace-more"}


@dataclass
class Watched:
    """What a tracer sees of a mount."""

    file_system: FileSystem
    operations: Operations


class Others:
    """Answers everything else."""

    closed = False

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """See control.Conversation."""
        await trio.lowlevel.checkpoint()
        return {"other": request["request"]}

    async def aclose(self) -> None:
        """See control.Conversation."""
        await trio.lowlevel.checkpoint()
        self.closed = True


def watched(file_system: FileSystem) -> tuple[Operations, Tracer, TraceConversation]:
    mount = Watched(file_system, Operations(file_system, MountOptions()))
    tracer = Tracer(mount)
    return mount.operations, tracer, TraceConversation(tracer, mount, Others())


async def begin(conversation: TraceConversation, **more: Any) -> None:
    assert await conversation.answer({"request": "trace-begin", **more}) == {}


async def test_without_listeners_requests_go_the_same_way() -> None:
    async with mounted() as file_system:
        operations, tracer, conversation = watched(file_system)
        before = dict(vars(operations))
        await begin(conversation)
        assert set(vars(operations)) - set(before) == set(tracer.calls) >= {"lookup", "read"}
        await begin(conversation)  # anew: the first listener has gone
        await conversation.aclose()
        assert vars(operations) == before
        assert operations.lookup.__func__ is Operations.lookup  # type: ignore[attr-defined]


async def test_what_is_heard() -> None:
    async with mounted() as file_system:
        operations, _, conversation = watched(file_system)
        made = await operations.mkdir(ROOT_INO, b"old", 0o40755, CONTEXT)
        old_info, _ = await operations.create(made.st_ino, b"before", 0o100644, 0, CONTEXT)
        await begin(conversation)
        nothing = await operations.lookup(ROOT_INO, b"none", CONTEXT)
        assert nothing.st_ino == 0
        directory = await operations.mkdir(ROOT_INO, b"d\xff", 0o40755, CONTEXT)
        info, _ = await operations.create(directory.st_ino, b"a", 0o100644, 0, CONTEXT)
        assert await operations.write(info.fh, 3, b"secret") == 6
        assert await operations.read(info.fh, 0, 100) == b"\0\0\0secret"
        await operations.rename(directory.st_ino, b"a", ROOT_INO, b"b", 0, CONTEXT)
        await operations.read(info.fh, 9, 1)
        await operations.write(old_info.fh, 0, b"x")
        with pytest.raises(pyfuse3.FUSEError):
            await operations.getxattr(directory.st_ino, b"user.x", CONTEXT)
        with pytest.raises(pyfuse3.FUSEError):
            await operations.fsync(12345, False)
        await operations.statfs(CONTEXT)
        await operations.forget([(directory.st_ino, 1)])
        answer = await conversation.answer(MORE)
    found = [
        (each["call"], each["path"], each["target"], each["detail"], each["result"], each["bytes"])
        for each in answer["calls"]
    ]
    name = b"/d\xff".decode("utf-8", "surrogateescape")
    assert found == [
        ("lookup", "/none", None, "", "ENOENT", None),
        ("mkdir", name, None, "", "ok", None),
        ("create", f"{name}/a", None, "", "ok", None),
        ("write", f"{name}/a", None, "6 at 3", "ok", 6),
        ("read", f"{name}/a", None, "100 at 0", "ok", 9),
        ("rename", f"{name}/a", "/b", "", "ok", None),
        ("read", "/b", None, "1 at 9", "ok", 0),
        ("write", "/old/before", None, "1 at 0", "ok", 1),
        ("getxattr", name, None, "user.x", "ENODATA", None),
        ("fsync", None, None, "", "EBADF", None),
        ("statfs", None, None, "", "ok", None),
        ("forget", None, None, "1 inodes", "ok", None),
    ]
    assert answer["dropped"] == 0
    assert all(each["duration_us"] > 0 for each in answer["calls"])
    assert "secret" not in repr(answer)


async def test_only_what_is_wanted_is_heard() -> None:
    async with mounted() as file_system:
        operations, _, conversation = watched(file_system)
        await begin(conversation, calls=["statfs"])
        await operations.lookup(ROOT_INO, b"a", CONTEXT)
        await operations.statfs(CONTEXT)
        assert [each["call"] for each in (await conversation.answer(MORE))["calls"]] == ["statfs"]
        await begin(conversation, slower_us=10**9)
        await operations.statfs(CONTEXT)
        assert (await conversation.answer(MORE))["calls"] == []
        for request in ({"calls": ["nonsense"]}, {"calls": "statfs"}, {"slower_us": "x"}):
            with pytest.raises(UsageError):
                await conversation.answer({"request": "trace-begin", **request})
        await conversation.aclose()
        with pytest.raises(UsageError, match="trace-begin"):
            await conversation.answer(MORE)
        assert await conversation.answer({"request": "info"}) == {"other": "info"}


async def test_who_does_not_keep_up_loses_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "CALLS_KEPT_MAX", 10)
    monkeypatch.setattr(tracing, "CALLS_PER_ANSWER", 4)
    async with mounted() as file_system:
        operations, tracer, conversation = watched(file_system)
        await begin(conversation)
        other = Listener(frozenset({"lookup"}), 0)
        tracer.listen(other)
        for number in range(25):
            await operations.lookup(ROOT_INO, b"%d" % number, CONTEXT)
        answers = [await conversation.answer(MORE) for _ in range(3)]
        assert [each["dropped"] for each in answers] == [15, 0, 0]
        paths = [call["path"] for each in answers for call in each["calls"]]
        assert paths == [f"/{number}" for number in range(15, 25)]
        await conversation.aclose()
        await operations.lookup(ROOT_INO, b"later", CONTEXT)  # the other still hears
        heard, dropped = await other.more()
        assert (len(heard), heard[0].name, dropped) == (4, b"16", 16)


async def test_an_answer_comes_when_there_is_something_to_tell() -> None:
    async with mounted() as file_system:
        operations, _, conversation = watched(file_system)
        await begin(conversation)
        started = trio.current_time()
        assert (await conversation.answer(MORE))["calls"] == []
        assert trio.current_time() - started == pytest.approx(tracing.ANSWER_WITHIN_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operations.statfs, CONTEXT)
            started = trio.current_time()
            assert len((await conversation.answer(MORE))["calls"]) == 1
            assert trio.current_time() - started < tracing.ANSWER_WITHIN_S / 2


async def test_of_very_many_files_none_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_paths, "WALK_INODES_MAX", 1)
    async with mounted() as file_system:
        operations, _, conversation = watched(file_system)
        made = await operations.mkdir(ROOT_INO, b"d", 0o40755, CONTEXT)
        await begin(conversation)
        await operations.getattr(made.st_ino, CONTEXT)
        await operations.lookup(made.st_ino, b"x", CONTEXT)
        paths = [each["path"] for each in (await conversation.answer(MORE))["calls"]]
        assert paths == [f"inode:{made.st_ino}", f"inode:{made.st_ino}/x"]


async def test_a_watched_request_can_be_cancelled() -> None:
    async with mounted() as file_system:
        operations, _, conversation = watched(file_system)
        await begin(conversation)
        with trio.CancelScope() as scope:
            scope.cancel()
            await operations.create(ROOT_INO, b"a", 0o100644, 0, CONTEXT)
        assert scope.cancelled_caught
        (call,) = (await conversation.answer(MORE))["calls"]
        assert (call["call"], call["result"]) == ("create", "EINTR")
