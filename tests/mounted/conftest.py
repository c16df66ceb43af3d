"""Fixtures that need a kernel: image files, loop devices and real mounts.

Role: what a mounted test asks for, taken down again in the opposite order of its making, also
when the test fails. Where FUSE or loop devices cannot be used the test is skipped, and the
summary says why; where they can, a mount that does not work is a failure, never a skip.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Protocol

import pytest

from tests.mounted.mounts import MountedShardfs, run_command, shardfs

IMAGE_BYTES = 256 * 1024 * 1024
TEST_SECONDS_MAX = 180
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder carries the marker `mounted` and a time limit."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("mounted")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_SECONDS_MAX))


PROBE = """
import sys, pyfuse3
pyfuse3.init(pyfuse3.Operations(), sys.argv[1], {"fsname=probe"})
pyfuse3.close(unmount=True)
"""


@cache
def fuse_obstacle(directory: Path) -> str | None:
    """Why FUSE cannot be used here, found out with an empty mount; None if it can."""
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse on this machine"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse may not be opened by this user"
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, str(directory)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines() or ["no message"]
    return f"an empty FUSE mount fails here: {lines[-1]}"


@pytest.fixture(scope="session")
def fuse_is_usable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips the test, with the reason, where nothing can be mounted."""
    obstacle = fuse_obstacle(tmp_path_factory.getbasetemp())
    if obstacle is not None:
        pytest.skip(obstacle)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sockets and logs of this test's mounts are under its own directory."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("SHARDFS_RUNTIME_DIR", str(directory))
    return directory


@pytest.fixture
def kernel_resources() -> Iterator[ExitStack]:
    """Loop devices and mounts of one test, released newest first: mounts before their devices."""
    with ExitStack() as stack:
        yield stack


class ImageFactory(Protocol):
    """Makes one more sparse image file."""

    def __call__(self, size_bytes: int = IMAGE_BYTES) -> Path: ...


@pytest.fixture
def make_image(tmp_path: Path) -> ImageFactory:
    """A factory of sparse image files."""
    made: list[Path] = []

    def make(size_bytes: int = IMAGE_BYTES) -> Path:
        path = tmp_path / f"disk-{len(made)}.img"
        with path.open("xb") as file:
            file.truncate(size_bytes)
        made.append(path)
        return path

    return make


@pytest.fixture
def image_file(make_image: ImageFactory) -> Path:
    """An empty sparse image file of IMAGE_BYTES."""
    return make_image()


class LoopDeviceFactory(Protocol):
    """Attaches one more loop device."""

    def __call__(self, size_bytes: int = IMAGE_BYTES, *, sector_bytes: int = 512) -> Path: ...


@pytest.fixture
def loop_device(make_image: ImageFactory, kernel_resources: ExitStack) -> LoopDeviceFactory:
    """A factory of loop devices on fresh image files; skips where losetup may not be used."""

    def attach(size_bytes: int = IMAGE_BYTES, *, sector_bytes: int = 512) -> Path:
        image = make_image(size_bytes)
        command = ["losetup", "--find", "--show", "--sector-size", str(sector_bytes), str(image)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except FileNotFoundError:
            pytest.skip("no losetup on this machine (Debian package mount)")
        if run.returncode != 0:
            pytest.skip(f"no loop device to be had: {run.stderr.strip()}")
        device = Path(run.stdout.strip())
        kernel_resources.callback(detach_loop_device, device, image)
        allow_discards(device)
        return device

    return attach


def allow_discards(device: Path) -> None:
    """Let a loop device discard what its file can: what an earlier user forbade stays forbidden."""
    queue = Path("/sys/block") / device.name / "queue"
    most, step = (
        int((queue / name).read_text()) for name in ("discard_max_hw_bytes", "discard_granularity")
    )
    if step:
        (queue / "discard_max_bytes").write_text(str(most - most % step))


def detach_loop_device(device: Path, image: Path, *, seconds_max: float = 10.0) -> None:
    """Detach, and wait until the kernel has let go of the image."""
    run_command("losetup", "--detach", device)
    deadline = time.monotonic() + seconds_max
    while run_command("losetup", "--associated", image, "--noheadings").strip():
        assert time.monotonic() < deadline, f"{device} is still attached to {image}"
        time.sleep(0.01)


class MountFactory(Protocol):
    """Mounts one more device."""

    def __call__(
        self,
        device: Path,
        options: Sequence[str] = (),
        *,
        arguments: Sequence[str | Path] = (),
        format_arguments: Sequence[str] | None = (),
        for_everybody: bool = False,
        seconds_max: float = 120.0,
    ) -> MountedShardfs: ...


@pytest.fixture
def mount_shardfs(
    fuse_is_usable: None, tmp_path: Path, kernel_resources: ExitStack
) -> MountFactory:
    """A factory of mounts: formats the device (unless format_arguments is None), mounts it.

    `for_everybody`: the mount point is where every user can get to. pytest closes its own folders
    to others whenever it starts.
    """
    made: list[MountedShardfs] = []

    def mount(
        device: Path,
        options: Sequence[str] = (),
        *,
        arguments: Sequence[str | Path] = (),
        format_arguments: Sequence[str] | None = (),
        for_everybody: bool = False,
        seconds_max: float = 120.0,
    ) -> MountedShardfs:
        if format_arguments is not None:
            shardfs("mkfs", device, *format_arguments)
        folder = tmp_path
        if for_everybody:
            folder = Path(tempfile.mkdtemp(prefix="shardfs-test-"))
            folder.chmod(0o755)
            # Not what is in it: an unmounted mount point, or else a mount.
            kernel_resources.callback(os.rmdir, folder)
            kernel_resources.callback(os.rmdir, folder / f"mnt-{len(made)}")
        path = folder / f"mnt-{len(made)}"
        path.mkdir()
        log = tmp_path / f"server-{len(made)}.log"
        mounted = MountedShardfs(
            device, path, log, options, arguments=arguments, seconds_max=seconds_max
        )
        made.append(mounted)
        kernel_resources.callback(mounted.close)
        mounted.start()
        return mounted

    return mount


@pytest.fixture
def mounted_shardfs(image_file: Path, mount_shardfs: MountFactory) -> MountedShardfs:
    """A fresh shardfs on an image file of IMAGE_BYTES, mounted; verified by fsck at the end."""
    return mount_shardfs(image_file)


@pytest.fixture(scope="module")
def shared_mount(
    fuse_is_usable: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedShardfs]:
    """One mount for all tests of a module, which may remount it; verified by fsck at the end."""
    place = tmp_path_factory.mktemp("shared")
    image, path = place / "disk.img", place / "mnt"
    path.mkdir()
    shardfs("mkfs", image, "--size", str(IMAGE_BYTES))
    mounted = MountedShardfs(image, path, place / "log", seconds_max=900)
    try:
        mounted.start()
        yield mounted
    finally:
        mounted.close()


@pytest.fixture
def folder(shared_mount: MountedShardfs) -> Iterator[Path]:
    """An empty directory of `shared_mount` for one test."""
    path = shared_mount.path / "folder"
    path.mkdir()
    yield path
    run_command("rm", "-rf", path)


@pytest.fixture
def run_shardfs() -> Callable[..., str]:
    """The real `shardfs` command: run_shardfs("info", device, expected_status=0) -> stdout."""
    return shardfs
