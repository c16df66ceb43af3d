"""Files overwritten in place, at random, through a real mount: room on a nearly full disk, and
scattered files put together again when they are left alone.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from shardfs import limits
from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.full_load import KIB, MIB, free_bytes
from tests.mounted.mounts import shardfs

GROWTH_SHARE_MAX = 1 / 32
IDLE_SECONDS_MAX = 90.0
PAGE_BYTES = 4 * KIB


def fill(folder: Path, sizes: list[int]) -> dict[Path, bytearray]:
    """Files of these sizes, and what they hold."""
    rng = random.Random(len(sizes))
    files = {}
    for number, size in enumerate(sizes):
        path = folder / f"{number}"
        content = bytearray(rng.randbytes(size))
        path.write_bytes(content)
        files[path] = content
    return files


def overwrite(files: dict[Path, bytearray], lengths: tuple[int, int], times: float) -> None:
    """Parts of the files, anywhere; none may be refused. Now and then one is made durable."""
    rng = random.Random(7)
    paths, sizes = list(files), [len(content) for content in files.values()]
    left = int(times * sum(sizes))
    descriptors = {path: os.open(path, os.O_WRONLY) for path in paths}
    try:
        while left > 0:
            path = rng.choices(paths, sizes)[0]
            length = min(rng.randint(*lengths), len(files[path]))
            start = rng.randrange(len(files[path]) - length + 1)
            data = rng.randbytes(length)
            assert os.pwrite(descriptors[path], data, start) == length
            files[path][start : start + length] = data
            if rng.random() < 0.01:
                os.fsync(descriptors[path])
            left -= length
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def sizes_to_fill(wanted: int, large_bytes: int) -> list[int]:
    """One large file, and files of 1 MiB."""
    return [large_bytes, *[MIB] * ((wanted - large_bytes) // MIB)]


@pytest.mark.parametrize(
    ("size_bytes", "large_bytes", "times", "seconds_max"),
    [
        pytest.param(64 * MIB, 8 * MIB, 1.5, 170.0, id="64MiB"),
        pytest.param(
            384 * MIB,
            200 * MIB,
            4.0,
            1700.0,
            id="384MiB",
            marks=[pytest.mark.slow, pytest.mark.timeout(1800)],
        ),
    ],
)
@pytest.mark.parametrize("share", [0.85, 0.95])
def test_overwriting_on_a_nearly_full_disk_is_never_refused(
    size_bytes: int,
    large_bytes: int,
    times: float,
    seconds_max: float,
    share: float,
    make_image: ImageFactory,
    mount_shardfs: MountFactory,
) -> None:
    mounted = mount_shardfs(make_image(size_bytes), seconds_max=seconds_max)
    files = fill(mounted.path, sizes_to_fill(int(share * free_bytes(mounted.path)), large_bytes))
    shardfs("sync", mounted.path)
    before = free_bytes(mounted.path)
    overwrite(files, (4 * KIB, 256 * KIB), times)
    shardfs("sync", mounted.path)
    most = GROWTH_SHARE_MAX * sum(len(content) for content in files.values())
    deadline = time.monotonic() + IDLE_SECONDS_MAX
    while before - free_bytes(mounted.path) > most and time.monotonic() < deadline:
        time.sleep(0.2)  # the tree is merged when nothing happens
    assert before - free_bytes(mounted.path) <= most
    mounted.remount()
    for path, content in files.items():
        assert path.read_bytes() == content
    mounted.umount()
    shardfs("fsck", "--data", mounted.device)


def stat(mounted_path: Path) -> dict[str, Any]:
    """What the mount has counted."""
    answer: dict[str, Any] = json.loads(shardfs("stat", mounted_path, "--json"))
    return answer


def device_reads_of(path: Path, mounted_path: Path) -> tuple[bytes, int]:
    """What a file holds, and how many device reads it took to read it past the kernel's cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = stat(mounted_path)["device_reads"]
    content = path.read_bytes()
    return content, stat(mounted_path)["device_reads"] - before


def test_a_file_written_at_random_is_put_together_when_it_is_left_alone(
    make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    mounted = mount_shardfs(make_image(128 * MIB))
    path = mounted.path / "file"
    content = bytearray(random.Random(9).randbytes(3 * MIB))
    path.write_bytes(content)
    rng = random.Random(8)
    pages = rng.sample(range(3 * MIB // PAGE_BYTES), 80)
    with path.open("r+b", buffering=0) as file:
        for page in pages:
            data = rng.randbytes(PAGE_BYTES)
            content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = data
            os.pwrite(file.fileno(), data, page * PAGE_BYTES)
            os.fsync(file.fileno())
    mounted.remount()
    read, reads_before = device_reads_of(path, mounted.path)
    assert read == content
    assert reads_before >= len(pages), "each page is a piece of its own"
    deadline = time.monotonic() + limits.SCATTERED_IDLE_S + IDLE_SECONDS_MAX
    while not stat(mounted.path)["gathered_shards"] and time.monotonic() < deadline:
        time.sleep(0.2)
    shardfs("sync", mounted.path)
    mounted.remount()
    read, reads_after = device_reads_of(path, mounted.path)
    assert read == content
    assert reads_after <= reads_before // 3, "the file lies together"
