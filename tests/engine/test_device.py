"""The device behind the engine: real image files, and loop devices where the machine has them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardfs.engine import claims
from shardfs.engine.block_device import open_device
from shardfs.engine.cached_reads import CacheLooks
from shardfs.engine.claims import users_of
from shardfs.engine.device import Buffer, Device
from shardfs.engine.images import create_image
from shardfs.errors import DeviceBusyError, DeviceError, UsageError
from shardfs.limits import BLOCK_BYTES

MIB = 1024 * 1024
SIZE_BYTES = 4 * MIB

pytestmark = pytest.mark.real_clock


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    create_image(path, SIZE_BYTES)
    return str(path)


LoopMaker = Callable[..., str]


@pytest.fixture
def make_loop() -> Iterator[LoopMaker]:
    """Makes loop devices, and takes them down afterwards; skips where there are none."""
    if os.geteuid() or not shutil.which("losetup") or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root, losetup and /dev/loop-control")
    made: list[str] = []

    def make(path: str, *options: str) -> str:
        command = ["losetup", "--find", "--show", *options, path]
        made.append(subprocess.check_output(command, text=True).strip())
        return made[-1]

    try:
        yield make
    finally:
        for loop_device in made:
            subprocess.run(["losetup", "--detach", loop_device], check=True)


def block(letter: str, count: int = 1) -> bytes:
    return letter.encode() * (BLOCK_BYTES * count)


# --- reading and writing --------------------------------------------------------------------------


async def test_what_is_written_is_read_at_any_offset(image: str) -> None:
    device: Device = open_device(image)
    await device.write(BLOCK_BYTES, [block("a")[:100], block("a")[100:], b"", block("b")])
    assert bytes(await device.read(BLOCK_BYTES - 2, 4)) == b"\0\0aa"
    assert bytes(await device.read(2 * BLOCK_BYTES - 1, 2)) == b"ab"
    assert bytes(await device.read(SIZE_BYTES - 1, 1)) == b"\0"
    assert bytes(await device.read(0, 0)) == b""
    await device.flush()
    assert (device.counts.writes, device.counts.write_bytes) == (1, 2 * BLOCK_BYTES)
    assert (device.counts.reads, device.counts.flushes) == (4, 1)
    assert (device.size_bytes, device.sector_bytes, device.read_only) == (SIZE_BYTES, 512, False)
    assert device.write_pointer(0) is None
    device.close()
    again = open_device(image)
    assert again.read_blocking(BLOCK_BYTES, 3) == b"aaa"
    again.close()


WriteList = list[tuple[int, list[int]]]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 60), st.lists(st.integers(0, 9000), max_size=5)), max_size=8),
    st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 70_000)), max_size=4),
)
async def test_it_behaves_like_an_array_of_bytes(
    tmp_path: Path, writes: WriteList, reads: Sequence[tuple[int, int]]
) -> None:
    path = tmp_path / "array.img"
    path.unlink(missing_ok=True)
    create_image(path, MIB)
    device = open_device(path)
    model = bytearray(MIB)
    for number, (start_block, lengths) in enumerate(writes):
        buffers: list[Buffer] = [bytes([number + 1]) * length for length in lengths]
        buffers.append(bytearray(-sum(lengths) % BLOCK_BYTES))
        await device.write(start_block * BLOCK_BYTES, buffers)
        data = b"".join(buffers)
        model[start_block * BLOCK_BYTES : start_block * BLOCK_BYTES + len(data)] = data
    for offset, length in [*reads, (0, MIB)]:
        assert bytes(await device.read(offset, length)) == model[offset : offset + length]
    device.close()


async def test_transfers_in_small_pieces_and_many_buffers(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real_pwritev, real_preadv = os.pwritev, os.preadv

    def pwritev(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append(len(buffers))
        return real_pwritev(descriptor, [b"".join(buffers)[:5000]], offset)

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        return real_preadv(descriptor, [buffers[0][:777]], offset, flags)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "preadv", preadv)
    device = open_device(image)
    data = os.urandom(8 * BLOCK_BYTES)
    await device.write(0, [data[index : index + 8] for index in range(0, len(data), 8)])
    assert max(calls) <= 1024
    assert bytes(await device.read(0, len(data))) == data
    device.close()


async def test_cached_bytes_need_no_thread(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device(image)
    await device.write(0, [block("a", 4)])
    if not device._cached.read(0, 8)[1]:
        pytest.skip("this file system cannot say what it has cached")

    async def no_thread(*_: object, **__: object) -> None:
        raise AssertionError("a thread was used")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    assert bytes(await device.read(10, 20)) == b"a" * 20
    device.close()


async def test_the_trio_thread_has_nothing_read_that_is_not_cached(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With RWF_NOWAIT the kernel begins to read what it has not, and may sleep in doing so."""
    read_by: list[threading.Thread] = []
    real_preadv = os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        read_by.append(threading.current_thread())
        return real_preadv(descriptor, buffers, offset, flags)

    device = open_device(image)
    try:
        await device.write(0, [b"x" * BLOCK_BYTES])
        await device.flush()
        descriptor = device._descriptor
        try:
            assert CacheLooks(descriptor).has(0, BLOCK_BYTES)
        except OSError:
            pytest.skip("this kernel does not tell what is cached (cachestat: Linux 6.5)")
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if CacheLooks(descriptor).has(0, BLOCK_BYTES):
            pytest.skip("this file system keeps everything in memory")
        monkeypatch.setattr(os, "preadv", preadv)
        assert await device.read(100, 50) == b"x" * 50
        assert threading.main_thread() not in read_by
        read_by.clear()
        assert await device.read(100, 50) == b"x" * 50
        assert read_by == [threading.main_thread()], "cached now"
    finally:
        device.close()


async def test_reads_work_where_nothing_can_be_read_at_once(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_preadv = os.preadv

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no RWF_NOWAIT here")
        return real_preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    device = open_device(image)
    await device.write(0, [block("a")])
    assert bytes(await device.read(0, 3)) == b"aaa"
    assert bytes(await device.read(1, 3)) == b"aaa"
    device.close()


# --- errors ---------------------------------------------------------------------------------------


async def test_ranges_beyond_the_device_are_errors(image: str) -> None:
    device = open_device(image)
    for offset, length in ((SIZE_BYTES, 1), (-1, 1), (0, SIZE_BYTES + 1)):
        with pytest.raises(DeviceError) as caught:
            await device.read(offset, length)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(DeviceError):
        await device.write(SIZE_BYTES - BLOCK_BYTES, [block("a", 2)])
    device.close()


@pytest.mark.parametrize("offset, length", [(1, BLOCK_BYTES), (0, 512)])
async def test_writes_that_are_not_in_blocks_are_the_callers_bug(
    image: str, offset: int, length: int
) -> None:
    device = open_device(image)
    with pytest.raises(AssertionError):
        await device.write(offset, [bytes(length)])
    device.close()


async def test_an_image_cut_short_behind_our_back_is_an_error(image: str) -> None:
    device = open_device(image)
    os.truncate(image, BLOCK_BYTES)
    with pytest.raises(DeviceError) as caught:
        await device.read(0, 2 * BLOCK_BYTES)
    assert (caught.value.operation, caught.value.errno) == ("read", errno.EIO)
    device.close()


def failing(number: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


async def test_write_errors_name_the_place(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device(image)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing(errno.ENOSPC))
        with pytest.raises(DeviceError) as caught:
            await device.write(BLOCK_BYTES, [block("a", 2)])
    error = caught.value
    assert (error.operation, error.offset, error.length) == ("write", BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert error.errno == errno.ENOSPC
    await device.write(BLOCK_BYTES, [block("a", 2)])
    device.close()


async def test_after_a_failed_flush_nothing_is_written_or_flushed(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = open_device(image)
    device._flushes_in_kernel = False
    await device.write(0, [block("a")])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(errno.EIO))
        with pytest.raises(DeviceError):
            await device.flush()
    for call in (device.flush, lambda: device.write(0, [block("b")])):
        with pytest.raises(DeviceError) as caught:
            await call()
        assert caught.value.errno == errno.EIO
    assert bytes(await device.read(0, 1)) == b"a"
    device.close()


async def test_a_flush_beside_a_failing_one_does_not_succeed(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports an error to one caller; the other's success would be a lie."""
    device = open_device(image)
    device._flushes_in_kernel = False
    failed = threading.Event()
    turn = iter((True, False))

    def fdatasync(_descriptor: int) -> None:
        if next(turn):
            failed.wait()
            raise OSError(errno.EIO, "lost")
        failed.set()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    outcomes = []

    async def flush() -> None:
        try:
            await device.flush()
            outcomes.append(0)
        except DeviceError as error:
            outcomes.append(error.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.start_soon(flush)
    assert errno.EIO in outcomes
    with pytest.raises(DeviceError):
        await device.flush()
    device.close()


async def test_closed_devices_and_missing_ones(image: str, tmp_path: Path) -> None:
    device = open_device(image)
    device.close()
    device.close()
    with pytest.raises(DeviceError) as caught:
        await device.read(0, 1)
    assert caught.value.errno == errno.EBADF
    for path in (tmp_path / "absent", tmp_path, "/dev/null"):
        with pytest.raises(UsageError) as wrong:
            open_device(path)
        assert "\n" not in str(wrong.value)
    with pytest.raises(UsageError, match="File exists"):
        create_image(image, SIZE_BYTES)
    with pytest.raises(UsageError, match="sectors of 1024"):
        open_device(image, sector_bytes=1024)
    open_device(image).close()


# --- requests in flight ---------------------------------------------------------------------------


@pytest.fixture
def slow_write(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Every pwritev says that it has begun, and waits until it may go on."""
    begun, go_on = threading.Event(), threading.Event()
    real_pwritev = os.pwritev

    def pwritev(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        begun.set()
        assert go_on.wait(10)
        return real_pwritev(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    return begun, go_on


async def until(event: threading.Event) -> None:
    assert await trio.to_thread.run_sync(event.wait, 10)


async def test_a_cancelled_write_is_waited_for(
    image: str, slow_write: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = slow_write
    device = open_device(image)
    finished = False

    async def write() -> None:
        nonlocal finished
        await device.write(0, [block("a") * 32])  # large enough for a thread
        finished = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await until(begun)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.02)
            assert device._requests_in_flight == 1
            go_on.set()
    assert finished
    assert bytes(await device.read(0, 1)) == b"a"
    device.close()


async def test_a_closed_device_keeps_its_descriptor_until_requests_end(
    image: str, slow_write: tuple[threading.Event, threading.Event]
) -> None:
    begun, go_on = slow_write
    device = open_device(image)
    descriptor = device._descriptor
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 0, [block("a") * 32])
        await until(begun)
        device.close()
        assert os.fstat(descriptor).st_size == SIZE_BYTES
        with pytest.raises(DeviceBusyError):
            open_device(image)
        go_on.set()
    again = open_device(image)
    assert again.read_blocking(0, 1) == b"a"
    again.close()


# --- discard --------------------------------------------------------------------------------------


async def test_discarding_gives_space_back(image: str) -> None:
    device = open_device(image)
    await device.write(0, [os.urandom(MIB)])
    await device.flush()
    before = os.stat(image).st_blocks
    await device.discard(0, MIB)
    assert bytes(await device.read(0, MIB)) in (bytes(MIB), bytes(await device.read(0, MIB)))
    if device._discards:
        assert os.stat(image).st_blocks < before
    assert os.stat(image).st_size == SIZE_BYTES
    device.close()


async def test_a_device_that_cannot_discard_is_asked_once(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = open_device(image)
    asked = []

    def cannot(length: int, _descriptor: int, _offset: int) -> None:
        asked.append(length)
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr("shardfs.engine.block_device.punch_hole", cannot)
    await device.discard(0, MIB)
    await device.discard(0, MIB)
    assert asked == [MIB]
    assert device.counts.discards == 2
    device.close()


# --- who has it -----------------------------------------------------------------------------------


def test_one_exclusive_opening_at_a_time(image: str) -> None:
    device = open_device(image)
    with pytest.raises(DeviceBusyError) as caught:
        open_device(image)
    assert "\n" not in str(caught.value)
    with pytest.raises(DeviceBusyError):
        open_device(image, read_only=True)
    looking = open_device(image, read_only=True, exclusive=False)
    looking.close()
    device.close()
    open_device(image).close()


async def test_read_only_devices_refuse_every_change(image: str) -> None:
    device = open_device(image, read_only=True)
    assert device.read_only
    calls: list[Callable[[], Awaitable[None]]] = [
        lambda: device.write(0, [block("a")]),
        device.flush,
        lambda: device.discard(0, MIB),
        lambda: device.reset(0, MIB),
    ]
    for call in calls:
        with pytest.raises(DeviceError) as caught:
            await call()
        assert caught.value.errno == errno.EROFS
    device.close()


def test_write_protected_images_are_opened_for_reading(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def protected(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, "Read-only file system")
        return real_open(name, flags, mode)

    monkeypatch.setattr(os, "open", protected)
    device = open_device(image)
    assert device.read_only
    device.close()


async def test_a_loop_device_works_like_its_file(image: str, make_loop: LoopMaker) -> None:
    loop_device = make_loop(image)
    device = open_device(loop_device)
    assert (device.size_bytes, device.sector_bytes, device.read_only) == (SIZE_BYTES, 512, False)
    data = os.urandom(MIB)
    await device.write(MIB, [data])
    await device.flush()
    assert (await trio.Path(image).read_bytes())[MIB : 2 * MIB] == data
    await device.discard(MIB, BLOCK_BYTES)
    assert bytes(await device.read(MIB + BLOCK_BYTES, 10)) == data[BLOCK_BYTES : BLOCK_BYTES + 10]
    device.close()


def test_a_loop_device_and_its_file_are_one_device(image: str, make_loop: LoopMaker) -> None:
    loop_device, second = make_loop(image), make_loop(image)
    assert users_of(image) == [f"attached as {name}" for name in sorted((loop_device, second))]
    for one, others in ((loop_device, (image, second)), (image, (loop_device, second))):
        device = open_device(one)
        for other in (one, *others):
            with pytest.raises(DeviceBusyError):
                open_device(other)
        device.close()
    open_device(loop_device).close()


def test_a_loop_device_tells_its_sectors_and_its_write_protection(
    image: str, make_loop: LoopMaker
) -> None:
    wide = open_device(make_loop(image, "--sector-size", "4096"))
    assert wide.sector_bytes == 4096
    wide.close()
    protected = open_device(make_loop(image, "--read-only"))
    assert protected.read_only
    protected.close()


def test_mounted_devices_are_busy_and_say_where(
    image: str, make_loop: LoopMaker, tmp_path: Path
) -> None:
    loop_device = make_loop(image)
    mount_point = tmp_path / "with a space"
    mount_point.mkdir()
    made = subprocess.run(["mkfs.ext4", "-q", loop_device], capture_output=True, check=False)
    command = ["mount", "-t", "ext4", loop_device, str(mount_point)]
    if made.returncode or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("ext4 cannot be made and mounted here")
    try:
        for name in (loop_device, image):
            with pytest.raises(DeviceBusyError):
                open_device(name)
        assert users_of(loop_device) == [f"{loop_device} is mounted on {mount_point}"]
        assert users_of(image) == [f"attached as {loop_device}"]
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)
    assert users_of(loop_device) == []


def test_partitions_and_holders_are_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's tables, written by hand: sda has a mounted partition and one in a volume."""
    disk, first, second = tmp_path / "8:0", tmp_path / "8:0/sda1", tmp_path / "8:0/sda2"
    for number, (folder, name) in enumerate(((first, "1"), (second, "2")), start=1):
        folder.mkdir(parents=True)
        (folder / "partition").write_text(name)
        (folder / "dev").write_text(f"8:{number}\n")
    holders = tmp_path / "8:2/holders/dm-0"
    holders.mkdir(parents=True)
    assert disk.exists()

    def sysfs(number: int) -> Path:
        return tmp_path / f"{os.major(number)}:{os.minor(number)}"

    def mounts() -> Iterator[tuple[str, int, str]]:
        yield "/dev/sda1", os.makedev(8, 1), "/home"

    monkeypatch.setattr(claims, "_sysfs", sysfs)
    monkeypatch.setattr(claims, "_mounts", mounts)
    monkeypatch.setattr(claims, "_swap_areas", list)
    uses = [
        f"{name} is {use}"
        for number, name in claims._with_partitions(os.makedev(8, 0), "/dev/sda")
        for use in claims._uses_of_number(number, name)
    ]
    assert uses == ["/dev/sda1 is mounted on /home", "/dev/sda2 is held by /dev/dm-0"]


async def test_opening_drops_what_the_page_cache_calls_clean(tmp_path: Path) -> None:
    """After a failed flush it may be what never reached the medium."""
    path = tmp_path / "image"
    create_image(path, 1 << 20)
    device = open_device(path)
    await device.write(0, [b"a" * BLOCK_BYTES])
    await device.flush()
    device.close()
    advised = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_fadvise", lambda *arguments: advised.append(arguments[1:]))
        open_device(path, read_only=True, exclusive=False).close()
        assert not advised
        open_device(path).close()
    assert advised == [(0, 0, os.POSIX_FADV_DONTNEED)]
    device = open_device(path)
    assert bytes(await device.read(0, BLOCK_BYTES)) == b"a" * BLOCK_BYTES
    device.close()
