"""A disk filled by one kind of thing that takes space, whichever: what has to work then works.

Role: for data, names, links, attributes, pieces of files and what else there is: ENOSPC comes in
the end; removing, cutting off and renaming work all the same; the parts of `shardfs df` add up;
after everything is gone `df` is back to within 1 %, and as many of the same fit in again.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.commands import output_of
from tests.mounted.conftest import ImageFactory, MountFactory
from tests.mounted.full_load import KIB, MIB, empty, free_bytes, wait_for_free
from tests.mounted.mounts import MountedShardfs

COUNT_SHARE_OFF_MAX = 0.02
FREE_SHARE_WHEN_EMPTY_MIN = 0.99
SMALL = (4 * MIB, "128K")
"""Bytes of a device, and size of its extents."""
LARGER = (64 * MIB, "1M")
LONG = "n" * 200


def data(folder: Path) -> Iterator[None]:
    with (folder / "file").open("wb", buffering=0) as file:
        while True:
            file.write(os.urandom(4 * KIB))
            yield


def empty_files(folder: Path) -> Iterator[None]:
    for number in itertools.count():
        os.close(os.open(folder / f"{number}", os.O_CREAT | os.O_EXCL))
        yield


def long_names(folder: Path) -> Iterator[None]:
    for number in itertools.count():
        os.close(os.open(folder / f"{number:0255}", os.O_CREAT | os.O_EXCL))
        yield


def symlinks(folder: Path) -> Iterator[None]:
    for number in itertools.count():
        os.symlink(f"{number:04000}", folder / f"{number}")
        yield


def attributes(folder: Path) -> Iterator[None]:
    for number in itertools.count():
        path = folder / f"{number // 8}"
        path.touch()
        os.setxattr(path, f"user.{number % 8}", os.urandom(5 * KIB))
        yield


def hard_links(folder: Path) -> Iterator[None]:
    (folder / "file").touch()
    for number in itertools.count():
        os.link(folder / "file", folder / f"{LONG}{number}")
        yield


def directories(folder: Path) -> Iterator[None]:
    path = folder
    for number in itertools.count():
        path = (folder if number % 10 == 0 else path) / f"{number}"
        path.mkdir()
        yield


def pieces(folder: Path) -> Iterator[None]:
    """A few bytes here and there: files that are mostly holes."""
    for number in itertools.count():
        with (folder / f"{number}").open("wb", buffering=0) as file:
            for at in range(0, 100 * 64 * KIB, 64 * KIB):
                os.pwrite(file.fileno(), b"some bytes", at)
                yield


def renamed_files(folder: Path) -> Iterator[None]:
    """Each file gets a longer name after a short one."""
    for number in itertools.count():
        (folder / f"{number}").write_bytes(b"x" * 500)
        os.rename(folder / f"{number}", folder / f"{LONG}{number}")
        yield


def replaced_files(folder: Path) -> Iterator[None]:
    """Files written anew under another name and renamed over the old one, as editors do; every
    third stays."""
    for number in itertools.count():
        (folder / "new").write_bytes(os.urandom(3 * KIB))
        os.rename(folder / "new", folder / f"{number // 3}")
        yield


Kind = Callable[[Path], Iterator[None]]
KINDS: tuple[Kind, ...] = (
    data,
    empty_files,
    long_names,
    symlinks,
    attributes,
    hard_links,
    directories,
    pieces,
    renamed_files,
    replaced_files,
)


def fill(folder: Path, kind: Kind) -> int:
    """Until ENOSPC, which must come at such a call; how many fitted."""
    folder.mkdir()
    count = 0
    try:
        for _ in kind(folder):
            count += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    return count


def parts_add_up(path: Path) -> None:
    """What `shardfs df` says is the whole device, and what df(1) says."""
    answer = json.loads(output_of("df", path, "--json"))
    parts = answer["parts"]
    assert sum(parts.values()) == answer["device_bytes"], parts
    assert min(parts.values()) >= 0, parts
    assert answer["available_bytes"] == parts["garbage_bytes"] + parts["free_bytes"], parts


def prepare(folder: Path, rounds: int) -> None:
    """What `use_while_full` needs: there would be no room to make it later."""
    folder.mkdir()
    for number in range(rounds):
        for name in ("cut", "gone", "over", "replaced", "moved", "marked"):
            (folder / f"{name}{number}").write_bytes(b"content " * 64)
        (folder / f"directory{number}").mkdir()
        os.setxattr(folder / f"marked{number}", "user.mark", b"value" * 20)


def use_while_full(folder: Path, number: int) -> None:
    """What has to work on a full disk."""
    os.chmod(folder / f"cut{number}", 0o600)
    os.truncate(folder / f"cut{number}", 100)
    os.unlink(folder / f"gone{number}")
    os.rename(folder / f"over{number}", folder / f"replaced{number}")
    os.rename(folder / f"moved{number}", folder / f"moved elsewhere{number}")
    os.rmdir(folder / f"directory{number}")
    os.removexattr(folder / f"marked{number}", "user.mark")
    os.utime(folder / f"marked{number}")
    assert (folder / f"cut{number}").read_bytes() == (b"content " * 64)[:100]
    assert (folder / f"replaced{number}").read_bytes() == b"content " * 64
    os.close(os.open(folder / f"marked{number}", os.O_WRONLY | os.O_TRUNC))


def run(mounted: MountedShardfs, kind: Kind, cycles: int) -> None:
    """Fill, use, empty; so many times."""
    path = mounted.path
    fresh = free_bytes(path)
    counts = []
    for _ in range(cycles):
        prepare(path / "kept", 40)
        counts.append(fill(path / "filled", kind))
        parts_add_up(path)
        for number in range(20):
            use_while_full(path / "kept", number)
        output_of("sync", path)
        parts_add_up(path)
        mounted.remount()
        for number in range(20, 40):
            use_while_full(path / "kept", number)
        empty(path)
        wanted = int(FREE_SHARE_WHEN_EMPTY_MIN * fresh)
        free = wait_for_free(path, wanted)
        assert free >= wanted, (free, fresh, output_of("df", path))
        parts_add_up(path)
    assert max(counts) - min(counts) <= COUNT_SHARE_OFF_MAX * counts[0], counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_disk_filled_by(
    kind: Kind, make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    size_bytes, extent = SMALL
    mounted = mount_shardfs(
        make_image(size_bytes), format_arguments=["--extent-size", extent], seconds_max=170
    )
    run(mounted, kind, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("size_bytes", "extent"), [SMALL, LARGER], ids=["4MiB", "64MiB"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_filled_again_by(
    kind: Kind, size_bytes: int, extent: str, make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    mounted = mount_shardfs(
        make_image(size_bytes), format_arguments=["--extent-size", extent], seconds_max=3500
    )
    run(mounted, kind, 3)
