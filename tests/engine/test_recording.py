"""Recordings: what a device did is what they tell, in the order it happened; any bytes decode."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.recorder import Recorder, RecordingDevice
from shardfs.engine.recording import (
    RECORD_HEAD,
    RECORDING_HEADER,
    Answer,
    Beginning,
    Content,
    Header,
    Mark,
    Record,
    RecordingReader,
    Request,
    RequestKind,
    encode_header,
    encode_record,
)
from shardfs.errors import CorruptionError, DeviceError, UsageError

BLOCK = 4096
DEVICE_BYTES = 1 << 20
EXAMPLE: tuple[Record, ...] = (
    Content(2 * BLOCK, b"x" * BLOCK),
    Beginning(),
    Request(1, RequestKind.WRITE, 0, 2 * BLOCK, (b"a" * BLOCK, b"b" * BLOCK)),
    Mark(b"fsync"),
    Request(2, RequestKind.FLUSH, 0, 0),
    Answer(1, True),
    Request(3, RequestKind.DISCARD, BLOCK, BLOCK),
    Answer(2, False),
    Request(4, RequestKind.RESET, 0, 4 * BLOCK),
)


def encoded(records: Sequence[Record]) -> bytes:
    """A recording of these records."""
    parts = [encode_header(Header(DEVICE_BYTES, 512))]
    for number, record in enumerate(records):
        parts += [bytes(buffer) for buffer in encode_record(number, record)]
    return b"".join(parts)


def plain(record: Record) -> Record:
    """A record with its data as one bytes object."""
    if isinstance(record, Request) and record.data:
        return record._replace(data=(b"".join(record.data),))
    if isinstance(record, Content):
        return record._replace(data=bytes(record.data))
    return record


def read(data: bytes) -> tuple[list[Record], bool]:
    """Every record, and whether the last one is cut short."""
    reader = RecordingReader(data)
    return [plain(record) for record in reader.records()], reader.is_cut_short


DATA = encoded(EXAMPLE)


def test_what_is_encoded_is_decoded() -> None:
    assert read(DATA) == ([plain(record) for record in EXAMPLE], False)
    header = RecordingReader(DATA).header
    assert (header.device_bytes, header.sector_bytes) == (DEVICE_BYTES, 512)


def test_a_recording_may_end_anywhere() -> None:
    whole = [plain(record) for record in EXAMPLE]
    ends = [len(encoded(EXAMPLE[:count])) for count in range(len(EXAMPLE) + 1)]
    for length in range(RECORDING_HEADER.size, len(DATA), 13):
        records, is_cut_short = read(DATA[:length])
        count = sum(end <= length for end in ends) - 1
        assert (records, is_cut_short) == (whole[:count], length not in ends)


def test_every_changed_bit_is_found() -> None:
    for position in [*range(RECORDING_HEADER.size), *range(60, len(DATA), 97)]:
        broken = bytearray(DATA)
        broken[position] ^= 4
        with pytest.raises(CorruptionError):
            read(bytes(broken))


@pytest.mark.parametrize(
    "records",
    [
        (Request(2, RequestKind.FLUSH, 0, 0),),
        (Request(1, RequestKind.FLUSH, 0, 0), Request(1, RequestKind.FLUSH, 0, 0)),
        (Answer(1, True),),
        (Request(1, RequestKind.FLUSH, 0, 0), Answer(1, True), Answer(1, True)),
        (Request(1, RequestKind.WRITE, 0, BLOCK, ()),),
        (Request(1, RequestKind.WRITE, 0, 10, (b"0123456789",)),),
        (Request(1, RequestKind.DISCARD, DEVICE_BYTES, BLOCK),),
        (Content(100, bytes(BLOCK)),),
        (Content(1 << 63, bytes(BLOCK)),),
    ],
)
def test_what_does_not_fit_together_is_corrupt(records: tuple[Record, ...]) -> None:
    with pytest.raises(CorruptionError):
        read(encoded(records))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_give_records_or_are_corrupt(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(DATA)))
    length = data.draw(st.integers(0, 200))
    middle = data.draw(st.binary(max_size=200))
    broken = DATA[:start] + middle + DATA[start + length :]
    try:
        read(broken)
    except CorruptionError:
        return


@given(st.binary(max_size=300))
@example(DATA[: RECORDING_HEADER.size] + bytes(RECORD_HEAD.size))
def test_arbitrary_bytes(data: bytes) -> None:
    for each in (data, DATA[: RECORDING_HEADER.size] + data):
        try:
            read(each)
        except CorruptionError:
            continue


# --- recording a device ---------------------------------------------------------------------------


async def recording(path: Path, device: SimulatedDevice) -> RecordingDevice:
    """The device, recorded."""
    return await RecordingDevice.start(device, Recorder.create(str(path)))


def test_the_content_at_the_beginning(tmp_path: Path) -> None:
    async def run() -> None:
        image = bytearray(3 << 20)
        image[BLOCK : 3 * BLOCK] = b"1" * (2 * BLOCK)
        image[-1] = 1
        device = SimulatedDevice.from_image(bytes(image))
        recorded = await recording(tmp_path / "recording", device)
        assert await recorded.read(BLOCK, 10) == b"1" * 10
        recorded.close()
        found = bytearray(len(image))
        records, _ = read((tmp_path / "recording").read_bytes())
        for each in records:
            if isinstance(each, Content):
                found[each.offset : each.offset + len(each.data)] = each.data
        assert found == image
        assert [type(each) for each in records] == [Content, Content, Beginning]
        assert (tmp_path / "recording").stat().st_size < 5 * BLOCK

    trio.run(run)


def test_requests_and_answers_stand_in_order(tmp_path: Path) -> None:
    async def run() -> None:
        device = SimulatedDevice(DEVICE_BYTES, checkpoints_max=4, seed=1)
        recorded = await recording(tmp_path / "recording", device)
        async with trio.open_nursery() as nursery:
            for block in range(6):
                data = [bytes([block]) * 1000, bytes([block]) * 3096]
                nursery.start_soon(recorded.write, block * BLOCK, data)
                nursery.start_soon(recorded.flush)
        recorded.recorder.mark(b"synced")
        await recorded.discard(0, BLOCK)
        recorded.close()

    trio.run(run)
    records, _ = read((tmp_path / "recording").read_bytes())
    requests = [each for each in records if isinstance(each, Request)]
    assert [each.step for each in requests] == list(range(1, 14))
    assert sum(each.kind is RequestKind.FLUSH for each in requests) == 6
    assert all(len(set(each.data[0])) == 1 for each in requests if each.data)
    answers = [each for each in records if isinstance(each, Answer)]
    assert sorted(each.step for each in answers) == list(range(1, 14))
    assert records.index(Mark(b"synced")) > max(map(records.index, answers[:-1]))


def test_an_error_and_a_cancelled_caller(tmp_path: Path) -> None:
    async def run() -> None:
        device = SimulatedDevice(DEVICE_BYTES, checkpoints_max=4)
        recorded = await recording(tmp_path / "recording", device)
        device.fail("write", 0, BLOCK)
        with pytest.raises(DeviceError):
            await recorded.write(0, [bytes(BLOCK)])
        with trio.CancelScope() as scope:
            scope.cancel()
            await recorded.write(BLOCK, [bytes(BLOCK)])
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            steps = device.step
            nursery.start_soon(recorded.write, BLOCK, [b"x" * BLOCK])
            while device.step == steps:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        recorded.close()

    trio.run(run)
    records, _ = read((tmp_path / "recording").read_bytes())
    assert [each for each in records if isinstance(each, Answer)] == [
        Answer(1, False),
        Answer(2, True),
    ]


def test_a_full_disk_ends_the_recording_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("ends here: No space left on device")
    writev = os.writev
    room = 3 * BLOCK

    def short_writev(descriptor: int, buffers: Sequence[memoryview]) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = min(room, 1000, sum(map(len, buffers)))
        room -= count
        return writev(descriptor, [b"".join(buffers)[:count]])

    async def run() -> None:
        device = SimulatedDevice(DEVICE_BYTES)
        recorded = await recording(tmp_path / "recording", device)
        for block in range(5):
            await recorded.write(block * BLOCK, [bytes([block + 1]) * BLOCK])
        assert bytes(await recorded.read(4 * BLOCK, BLOCK)) == b"\5" * BLOCK
        recorded.close()

    monkeypatch.setattr(os, "writev", short_writev)
    trio.run(run)
    records, is_cut_short = read((tmp_path / "recording").read_bytes())
    assert is_cut_short
    assert len([each for each in records if isinstance(each, Request)]) == 2


def test_what_is_not_recorded(tmp_path: Path) -> None:
    async def refused(device: SimulatedDevice) -> None:
        with pytest.raises(UsageError):
            await recording(tmp_path / f"recording of {device.path}", device)

    trio.run(refused, SimulatedDevice(DEVICE_BYTES, read_only=True, path="protected"))
    trio.run(refused, SimulatedDevice(1 << 40, path="large"))
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UsageError, match="overwrites nothing"):
        Recorder.create(str(tmp_path / "taken"))
    with pytest.raises(UsageError, match="No such file"):
        Recorder.create(str(tmp_path / "absent" / "recording"))
    assert (tmp_path / "taken").read_text() == "mine"


def test_only_its_user_may_read_a_recording(tmp_path: Path) -> None:
    recorder = Recorder.create(str(tmp_path / "recording"))
    assert (tmp_path / "recording").stat().st_mode & 0o777 == 0o600
    recorder.remove()
    assert list(tmp_path.iterdir()) == []
