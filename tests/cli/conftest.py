"""Fixtures for tests of the command: image files, devices, and a runtime directory of their own.

Role: commands are run as real processes, `tests.cli.commands.run`; whatever they mount is taken
down at the end of the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.commands import image_hash, run, stop_everything_at
from tests.mounted.conftest import (  # noqa: F401 (fixtures)
    ImageFactory,
    fuse_is_usable,
    kernel_resources,
    loop_device,
    make_image,
    runtime,
)

IMAGE_BYTES = 64 * 1024 * 1024


@pytest.fixture(autouse=True)
def own_runtime_directory(runtime: Path) -> Path:  # noqa: F811
    """No command here finds a mount of anybody else."""
    return runtime


@pytest.fixture
def image_file(make_image: ImageFactory) -> Path:  # noqa: F811
    """An empty sparse image file, small enough to be hashed often."""
    return make_image(IMAGE_BYTES)


@pytest.fixture
def mountpoint(fuse_is_usable: None, tmp_path: Path) -> Iterator[Path]:  # noqa: F811
    """An empty directory; unmounted at the end, whatever happened."""
    path = tmp_path / "mount point"
    path.mkdir()
    yield path
    stop_everything_at(path)


@pytest.fixture
def formatted(image_file: Path) -> Path:
    """An image file with an empty shardfs."""
    assert run("mkfs", image_file).returncode == 0
    return image_file


@pytest.fixture
def untouched() -> Iterator[Callable[[Path], None]]:
    """untouched(path): the file must have the same bytes at the end of the test."""
    hashes: dict[Path, str] = {}

    def remember(path: Path) -> None:
        hashes[path] = image_hash(path)

    yield remember
    for path, digest in hashes.items():
        assert image_hash(path) == digest, f"{path} was changed"
