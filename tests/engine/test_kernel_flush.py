"""engine/kernel_flush.py: flushes by the kernel's worker, and what happens where there are none."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from shardfs.engine import kernel_requests
from shardfs.engine.block_device import BlockDevice, open_device
from shardfs.engine.images import create_image
from shardfs.engine.kernel_flush import KernelFlush
from shardfs.errors import DeviceError
from shardfs.limits import BLOCK_BYTES, MIB

BLOCK = b"b" * BLOCK_BYTES


@pytest.fixture
def device(tmp_path: Path) -> Iterator[BlockDevice]:
    path = tmp_path / "image"
    create_image(path, 4 * MIB)
    made = open_device(path)
    yield made
    made.close()


@pytest.fixture
def full_loop_device(tmp_path: Path) -> Iterator[str]:
    """A loop device whose file has no room below it: what is written is lost at the flush."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a loop device")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    loop = ""
    try:
        with open(folder / "image", "wb") as image:
            image.truncate(4 * MIB)
        command = ["losetup", "-f", "--show", str(folder / "image")]
        loop = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        yield loop
    finally:
        if loop:
            subprocess.run(["losetup", "-d", loop], check=True)
        subprocess.run(["umount", "-l", folder], check=True)


def no_thread(_descriptor: int) -> None:
    raise AssertionError("a thread has flushed")


async def test_the_kernel_flushes_without_a_thread(
    device: BlockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdatasync", no_thread)
    for number in range(3):
        await device.write(number * BLOCK_BYTES, [BLOCK])
        await device.flush()
    assert device.counts.flushes == 3


async def test_a_second_one_meanwhile_takes_a_thread(
    device: BlockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        threads.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    await device.write(0, [BLOCK])
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(device.flush)
    assert len(threads) == 2


@pytest.mark.parametrize("refuses", ["setup", "submit"])
async def test_where_the_kernel_refuses_a_thread_does_it(
    device: BlockDevice, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    if refuses == "setup":
        monkeypatch.setattr(kernel_requests, "NUMBERS", None)
    else:
        await device.flush()
        kernel = device._kernel_flush
        assert kernel is not None
        kernel._kernel._process += 1  # as in a child of the process that has set it up
    for _ in range(2):
        await device.write(0, [BLOCK])
        await device.flush()
    assert not device._flushes_in_kernel
    if refuses == "submit":
        assert kernel is not None
        kernel._kernel._process -= 1


async def test_a_cancelled_flush_runs_to_its_end(device: BlockDevice) -> None:
    await device.write(0, [BLOCK])
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.flush)
            await trio.lowlevel.checkpoint()
            scope.cancel()
    kernel = device._kernel_flush
    assert kernel is None or not kernel.is_busy
    await device.flush()


async def test_closing_waits_for_it(device: BlockDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    real = KernelFlush.begin

    def begin_and_close(self: KernelFlush) -> None:
        real(self)
        device.close()
        assert device._kernel_flush is self

    monkeypatch.setattr(KernelFlush, "begin", begin_and_close)
    await device.write(0, [BLOCK])
    with pytest.raises(DeviceError):  # closed before it could say that all is well
        await device.flush()
    assert device._kernel_flush is None


@pytest.mark.parametrize("in_kernel", [True, False])
async def test_a_device_that_loses_what_was_written_says_so(
    full_loop_device: str, in_kernel: bool
) -> None:
    device = open_device(full_loop_device)
    device._flushes_in_kernel = in_kernel
    try:
        for number in range(64):
            await device.write(number * 16 * BLOCK_BYTES, [BLOCK * 16])
        for call in (device.flush, device.flush, lambda: device.write(0, [BLOCK])):
            with pytest.raises(DeviceError) as caught:
                await call()
            assert caught.value.errno in (errno.EIO, errno.ENOSPC)
    finally:
        device.close()
