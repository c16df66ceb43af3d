"""Crash states of recordings: a sound file system has none that breaks a promise; bugs show."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import pytest
import trio

from shardfs.checking.recorded_life import NameHistory, RecordedLife
from shardfs.checking.recordings import check_crashes
from shardfs.engine.recorder import Recorder
from shardfs.engine.recording import (
    Answer,
    Beginning,
    Content,
    Header,
    Mark,
    Record,
    RecordingReader,
    Request,
    RequestKind,
)
from shardfs.errors import CorruptionError, NotShardfsError, UsageError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.namespace import Update
from shardfs.fuse.promises import (
    ContentChanged,
    NamesChanged,
    Promised,
    Said,
    decode_mark,
    encode_mark,
)
from shardfs.fuse.writeback import Writeback
from tests.checking.recorded import create, formatted, mail_spool, recorded

Script = Callable[[FileSystem], Awaitable[None]]


def record(path: Path, script: Script, seed: int = 0) -> None:
    """A recording of one script."""

    async def run() -> None:
        device = await formatted(seed)
        async with recorded(device, path) as file_system:
            await script(file_system)

    trio.run(run)


async def changes(file_system: FileSystem) -> None:
    """Overwriting, truncating, removing and renaming, some of it synced."""
    ino = await create(file_system, b"a", b"1" * 9000)
    other = await create(file_system, b"b", b"2" * 300)
    await file_system.writeback.fsync(ino)
    await file_system.writeback.write(ino, 4000, b"3" * 3000)
    await file_system.writeback.fsync(other)
    await file_system.namespace.set_attributes(ino, Update(size=100), privileged=True)
    await file_system.writeback.write(ino, 200, b"4" * 20)
    await file_system.sync()
    await file_system.namespace.unlink(ROOT_INO, b"b")
    await file_system.namespace.link(ino, ROOT_INO, b"c")
    await file_system.sync_names()
    await file_system.writeback.fsync(ino)


async def mails(file_system: FileSystem) -> None:
    await mail_spool(file_system, 8)


@pytest.mark.parametrize("script", [changes, mails])
def test_a_sound_file_system_keeps_its_promises(script: Script, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    record(path, script)
    seen: list[tuple[int, int]] = []
    report = check_crashes(
        str(path), states_per_point=12, progress=lambda *counts: seen.append(counts)
    )
    assert report.is_clean, report.findings
    assert report.states > 60 and report.promises >= 4 and report.notes == ()
    assert [done for done, _ in seen] == list(range(1, report.states + 1))
    assert all(done <= planned for done, planned in seen)


def test_a_sample_is_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    record(path, mails)
    reports = [check_crashes(str(path), states_max=40, seed=3) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0].states < 60 and reports[0].points < reports[0].moments


async def fsync_without_sync(self: Writeback, ino: int) -> None:
    """A bug: fsync gives the data to the store and forgets the flush."""
    await self.flush(ino)


async def fsync_without_data(self: Writeback, ino: int) -> None:
    """A bug: fsync leaves the data in memory."""
    await self._store.sync()


@pytest.mark.parametrize(
    ("bug", "invariant"), [(fsync_without_sync, "R2"), (fsync_without_data, "R3")]
)
def test_an_fsync_that_forgets_is_found(
    bug: Callable[[Writeback, int], Awaitable[None]],
    invariant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "recording"
    with monkeypatch.context() as patch:
        patch.setattr(Writeback, "fsync", bug)
        record(path, mails)
    report = check_crashes(str(path))
    assert not report.is_clean
    assert any(invariant in finding for finding in report.findings), report.findings
    assert "power cut at moment" in report.findings[0]


def replacing(bug: AbstractContextManager[object]) -> Script:
    """A file is replaced by another one, and nobody calls fsync; the rename meets a bug."""

    async def script(file_system: FileSystem) -> None:
        await create(file_system, b"a", b"old" * 500)
        await file_system.sync()
        await create(file_system, b"new", b"new" * 700)
        with bug:
            await file_system.namespace.rename(ROOT_INO, b"new", ROOT_INO, b"a")
        await file_system.store.sync()

    return script


def test_a_rename_without_content_is_found(tmp_path: Path) -> None:
    record(tmp_path / "sound", replacing(nullcontext()))
    assert check_crashes(str(tmp_path / "sound")).is_clean
    bug = mock.patch.object(Writeback, "is_dirty", lambda self, ino: False)
    record(tmp_path / "broken", replacing(bug))
    report = check_crashes(str(tmp_path / "broken"))
    assert any("R3 b'a'" in finding for finding in report.findings), report.findings


@pytest.mark.expected_warnings("now read-only")
def test_a_device_that_forgets_a_flush_is_found(tmp_path: Path) -> None:
    """The recorded requests show a flush that covers less than the engine thinks."""
    path, lying = tmp_path / "recording", tmp_path / "lying"
    record(path, mails)
    reader = RecordingReader(path.read_bytes())
    recorder = Recorder.create(str(lying))
    recorder.begin(reader.header)
    flushes: list[int] = []
    for each in reader.records():
        if isinstance(each, Request) and each.kind is RequestKind.FLUSH:
            flushes.append(each.step)
        if isinstance(each, Answer) and each.step in flushes[3::2]:
            each = each._replace(is_done=False)
        recorder.add(each)
    recorder.close()
    assert not check_crashes(str(lying)).is_clean


def test_what_is_read_and_what_is_not(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    record(path, changes)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4 + 1])
    report = check_crashes(str(path), states_max=20)
    assert report.is_clean and "cut short" in report.notes[0]
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptionError):
        check_crashes(str(path), states_max=20)
    path.write_bytes(data[:600])
    with pytest.raises(UsageError, match="nothing to check"):
        check_crashes(str(path))
    for junk in (b"", b"junk", bytes(4096)):
        path.write_bytes(junk)
        with pytest.raises(NotShardfsError):
            check_crashes(str(path))
    with pytest.raises(UsageError, match="No such file"):
        check_crashes(str(tmp_path / "absent"))
    with pytest.raises(UsageError):
        check_crashes(str(tmp_path))


# --- the recorded life ----------------------------------------------------------------------------

BLOCK = 4096


def life_of(path: Path, *records: Record) -> RecordedLife:
    """The life that these records tell."""
    recorder = Recorder.create(str(path))
    recorder.begin(Header(16 * BLOCK, 512))
    for each in records:
        recorder.add(each)
    recorder.close()
    return RecordedLife(RecordingReader(path.read_bytes()), NameHistory({}))


def write(step: int, block: int, fill: bytes) -> Request:
    return Request(step, RequestKind.WRITE, block * BLOCK, BLOCK, (fill * BLOCK,))


def flush(step: int) -> Request:
    return Request(step, RequestKind.FLUSH, 0, 0)


def test_a_flush_covers_what_was_answered_before_it_was_asked_for(tmp_path: Path) -> None:
    life = life_of(
        tmp_path / "recording",
        Content(0, b"0" * BLOCK),
        Beginning(),
        write(1, 1, b"a"),
        write(2, 2, b"b"),
        Answer(1, True),
        flush(3),
        Answer(2, True),
        write(4, 3, b"c"),
        Answer(3, True),
        Answer(4, True),
    )
    beginning, at_flush, end = life.moments()
    assert list(beginning.point.pages) == [0] and not beginning.point.unflushed
    assert [each.step for each in at_flush.point.unflushed] == [1, 2, 4]
    assert sorted(end.point.pages) == [0, 1]
    assert [each.step for each in end.point.unflushed] == [2, 4]
    assert sorted(at_flush.point.pages) == [0], "a moment does not change"


def test_failed_requests_are_never_sure(tmp_path: Path) -> None:
    life = life_of(
        tmp_path / "recording",
        Beginning(),
        write(1, 1, b"a"),
        Answer(1, False),
        flush(2),
        Answer(2, True),
        write(3, 2, b"b"),
        Answer(3, True),
        flush(4),
        Answer(4, False),
        write(5, 1, b"c"),
        Answer(5, True),
        flush(6),
        Answer(6, True),
    )
    moments = list(life.moments())
    assert [[each.step for each in moment.point.unflushed] for moment in moments] == [
        [],
        [1],
        [1, 3, 5],
        [],
    ]


def test_promises_and_their_ends(tmp_path: Path) -> None:
    said: list[Said] = [
        NamesChanged(((1, b"a", 5),)),
        Promised(1, 5, 10, 11),
        ContentChanged(5),
        NamesChanged(((1, b"a", 0), (1, b"b", 5))),
        Promised(1, 0, 0, 0),
    ]
    life = life_of(tmp_path / "recording", Beginning(), *(Mark(encode_mark(s)) for s in said))
    moments = list(life.moments())
    assert [(m.names_promised, m.names_changed, len(m.contents)) for m in moments] == [
        (0, 0, 0),
        (1, 1, 1),
        (1, 2, 0),
        (1, 2, 0),
    ]


def test_names_are_some_state_in_a_range() -> None:
    history = NameHistory({(1, b"a"): 2})
    history.change(NamesChanged(((1, b"a", 0), (1, b"b", 2))))
    history.change(NamesChanged(((1, b"b", 3),)))
    assert history.find({(1, b"a"): 2}, 0, 2) == 0
    assert history.find({(1, b"a"): 2}, 1, 2) is None
    assert history.find({(1, b"b"): 2}, 1, 1) == 1
    assert history.find({(1, b"b"): 3}, 2, 2) == 2
    assert history.find({(1, b"a"): 2, (1, b"b"): 2}, 0, 2) is None, "half a rename"
    assert "b'a'" in history.difference({(1, b"a"): 2}, 1)


@pytest.mark.parametrize(
    "said",
    [
        NamesChanged(((1, b"x" * 255, 9),)),
        Promised(1, 2, 3, 4),
        Promised(1, 2, 3, 4, is_given=True),
        ContentChanged(8),
    ],
)
def test_marks_decode_or_are_corrupt(said: Said) -> None:
    data = encode_mark(said)
    assert decode_mark(data) == said
    rng = random.Random(5)
    for _ in range(300):
        broken = bytearray(data[: rng.randrange(len(data) + 1)])
        for _ in range(rng.randrange(3)):
            if broken:
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            decode_mark(bytes(broken))
        except CorruptionError:
            continue
