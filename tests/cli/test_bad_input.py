"""Bad input, row by row: a one-line error, the right exit status, and nothing touched.

Role: every command that could meet the input is run as a real process on real files and devices.
Damage is status 1, everything else 2. Rows that are about files in a mount (names that are too
long, files that are too large, a handler's bug) are in tests/mounted/test_commands.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from shardfs.engine import open_device
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.superblock_record import Identity
from tests.cli.commands import image_hash, kill_server_of, output_of, refused, run
from tests.mounted.conftest import ImageFactory, LoopDeviceFactory
from tests.mounted.mounts import find_mount, run_command

MIB = 1024 * 1024
KEEP = Callable[[Path], None]

READERS = (
    ("info",),
    ("fsck",),
    ("shards", "ls"),
    ("shards", "cat"),
    ("df",),
    ("gc",),
    ("gc", "--now"),
    ("why",),
)
"""Commands that look at a device."""


def format_as(image: Path, change: Callable[[Identity], Identity]) -> None:
    """Format an image with an identity that mkfs would not choose."""
    device = open_device(image)
    try:
        identity = change(plan(device.size_bytes, device.sector_bytes))
        trio.run(partial(format_device, device, identity))
    finally:
        device.close()


def damage(image: Path, offset: int, length: int = 64) -> None:
    """Flip every bit of some bytes."""
    with image.open("r+b") as file:
        file.seek(offset)
        data = file.read(length)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in data))


def extent_bytes_of(image: Path) -> int:
    device = open_device(image, read_only=True)
    try:
        return plan(device.size_bytes, device.sector_bytes).extent_bytes
    finally:
        device.close()


# --- device too small -----------------------------------------------------------------------


def test_too_small_new_image(tmp_path: Path) -> None:
    path = tmp_path / "small.img"
    refused("mkfs", path, "--size", "1M", saying="needs at least")
    assert not path.exists()


def test_too_small_image(make_image: ImageFactory, untouched: KEEP) -> None:
    image = make_image(MIB)
    untouched(image)
    refused("mkfs", image, saying="needs at least")
    refused("mkfs", image, "--force", saying="needs at least")


def test_too_small_device(loop_device: LoopDeviceFactory) -> None:
    refused("mkfs", loop_device(MIB), saying="needs at least")


# --- not a shardfs device -------------------------------------------------------------------


@pytest.mark.parametrize("command", [*READERS, ("mount",)], ids=" ".join)
@pytest.mark.parametrize("content", ["zeros", "noise", "empty"])
def test_not_a_shardfs(
    command: tuple[str, ...],
    content: str,
    make_image: ImageFactory,
    tmp_path: Path,
    untouched: KEEP,
) -> None:
    image = make_image(0 if content == "empty" else 32 * MIB)
    if content == "noise":
        image.write_bytes(os.urandom(32 * MIB))
    untouched(image)
    arguments: list[str | Path] = [*command, image]
    if command == ("mount",):
        (tmp_path / "mnt").mkdir()
        arguments.append(tmp_path / "mnt")
    if command == ("shards", "cat"):
        arguments.append("1.0")
    refused(*arguments, saying="no shardfs")
    assert find_mount(tmp_path / "mnt") is None


@pytest.mark.parametrize("command", [*READERS, ("mkfs",), ("mount",)], ids=" ".join)
def test_no_such_device(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    more = [tmp_path / "mnt"] if command == ("mount",) else []
    refused(*command, tmp_path / "absent", *more, saying=str(tmp_path / "absent"))


@pytest.mark.parametrize("command", [*READERS, ("mkfs",), ("mount",)], ids=" ".join)
@pytest.mark.parametrize("kind", ["directory", "/dev/null"])
def test_not_a_device(command: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    name = tmp_path if kind == "directory" else Path(kind)
    refused(*command, name, *([place] if command == ("mount",) else []))


# --- format from the future -----------------------------------------------------------------


@pytest.mark.parametrize("command", [("info",), ("fsck",), ("shards", "ls"), ("mount",)])
@pytest.mark.parametrize(
    "change",
    [
        lambda identity: replace(identity, incompatible=1 << 63),
        lambda identity: replace(identity, format_version=99),
    ],
    ids=["incompatible feature", "format version"],
)
def test_future_format(
    command: tuple[str, ...],
    change: Callable[[Identity], Identity],
    image_file: Path,
    mountpoint: Path,
    untouched: KEEP,
) -> None:
    format_as(image_file, change)
    untouched(image_file)
    more = [mountpoint] if command == ("mount",) else []
    refused(*command, image_file, *more, saying="shardfs")
    assert find_mount(mountpoint) is None


def test_future_feature_that_allows_reading(
    formatted: Path, mountpoint: Path, untouched: KEEP
) -> None:
    output_of("mount", formatted, mountpoint)
    (mountpoint / "file").write_text("hello")
    output_of("umount", mountpoint)
    device = open_device(formatted)
    device.close()
    set_feature(formatted, read_only_compatible=1 << 40)
    untouched(formatted)
    output_of("mount", formatted, mountpoint)
    assert (mountpoint / "file").read_text() == "hello"
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "other").write_text("x")
    output_of("umount", mountpoint)


def set_feature(image: Path, *, read_only_compatible: int) -> None:
    """Rewrite both superblock logs with another feature bit."""
    from shardfs.engine.framing import encode_head, granule_digests
    from shardfs.engine.layout import Kind
    from shardfs.engine.superblock import read_copy
    from shardfs.engine.superblock_record import encode_record

    async def rewrite() -> None:
        device = open_device(image)
        try:
            first = await read_copy(device, 0)
            assert first.identity is not None and first.last is not None
            identity = replace(first.identity, read_only_compatible=read_only_compatible)
            entries = tuple(first.entries[number] for number in sorted(first.entries))
            record = first.last._replace(snapshot=True, entries=entries)
            payload = encode_record(identity, record)
            head = encode_head(
                Kind.SUPERBLOCK,
                identity.store_id,
                0,
                (record.incarnation << 40) + (1 << 39),
                b"",
                record.number,
                len(payload),
                granule_digests(payload),
            )
            data = head + payload
            data += bytes(-len(data) % 4096 + 4096)
            for start in (0, identity.extent_bytes):
                await device.write(start, (data,))
            await device.flush()
        finally:
            device.close()

    trio.run(rewrite)


# --- damaged superblocks --------------------------------------------------------------------


@pytest.mark.parametrize("copy", [0, 1])
def test_one_superblock_copy_damaged(formatted: Path, copy: int, mountpoint: Path) -> None:
    output_of("mount", formatted, mountpoint)
    (mountpoint / "file").write_text("hello")
    output_of("umount", mountpoint)
    damage(formatted, copy * extent_bytes_of(formatted))
    before = image_hash(formatted)
    name = ("first", "second")[copy]

    found = run("fsck", formatted)
    assert found.returncode == 1
    assert f"E1 the {name} superblock copy" in found.stdout.decode()
    assert f"the {name} superblock copy is damaged" in output_of("info", formatted)
    assert image_hash(formatted) == before

    mounted = run("mount", formatted, mountpoint)
    assert mounted.returncode == 0
    assert f"note: the {name} superblock copy is damaged" in mounted.stderr.decode()
    assert mounted.stderr.count(b"\n") == 1
    assert (mountpoint / "file").read_text() == "hello"
    output_of("umount", mountpoint)
    assert "clean" in output_of("fsck", formatted, "--data")


@pytest.mark.parametrize("command", [("info",), ("shards", "ls"), ("mount",)], ids=" ".join)
def test_both_superblock_copies_damaged(
    command: tuple[str, ...], formatted: Path, mountpoint: Path, untouched: KEEP
) -> None:
    for copy in (0, 1):
        damage(formatted, copy * extent_bytes_of(formatted) + 100)
    untouched(formatted)
    more = [mountpoint] if command == ("mount",) else []
    refused(*command, formatted, *more, status=1, saying="both superblock copies are damaged")


def test_fsck_of_both_superblock_copies_damaged(formatted: Path, untouched: KEEP) -> None:
    for copy in (0, 1):
        damage(formatted, copy * extent_bytes_of(formatted) + 100)
    untouched(formatted)
    found = run("fsck", formatted)
    assert found.returncode == 1
    assert "E0 it cannot be opened" in found.stdout.decode()
    assert found.stderr == b""


# --- in use ---------------------------------------------------------------------------------


@pytest.mark.parametrize("on_loop_device", [False, True])
def test_already_mounted(
    on_loop_device: bool,
    image_file: Path,
    loop_device: LoopDeviceFactory,
    mountpoint: Path,
    tmp_path: Path,
) -> None:
    device = loop_device(64 * MIB) if on_loop_device else image_file
    output_of("mkfs", device)
    output_of("mount", device, mountpoint)
    (mountpoint / "file").write_text("hello")
    output_of("sync", mountpoint)
    other = tmp_path / "other"
    other.mkdir()
    refused("mkfs", device, saying="in use")
    refused("mkfs", device, "--force", saying="in use")
    refused("mount", device, other, saying="in use")
    refused("mount", device, other, "-o", "ro", saying="in use")
    refused("fsck", device, saying="is mounted at")
    refused("mount", device, mountpoint, saying="mounted already")
    assert (mountpoint / "file").read_text() == "hello"
    assert find_mount(other) is None
    output_of("umount", mountpoint)
    assert "clean" in output_of("fsck", device, "--data")


@pytest.mark.parametrize(
    "command", [*READERS, ("mkfs",), ("mkfs", "--force"), ("mount",)], ids=" ".join
)
def test_open_in_another_shardfs(
    command: tuple[str, ...], formatted: Path, tmp_path: Path, untouched: KEEP
) -> None:
    (tmp_path / "mnt").mkdir()
    more = [tmp_path / "mnt"] if command == ("mount",) else []
    untouched(formatted)
    device = open_device(formatted)
    try:
        refused(*command, formatted, *more, saying="in use")
    finally:
        device.close()


def test_image_under_a_loop_device(loop_device: LoopDeviceFactory) -> None:
    device = loop_device(64 * MIB)
    image = Path(run_command("losetup", "--noheadings", "--output", "BACK-FILE", device).strip())
    refused("mkfs", image, "--force", saying=f"attached as {device}")


# --- what a device carries ------------------------------------------------------------------


def put_ext4(path: Path) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 on this machine (Debian package e2fsprogs)")
    run_command("mkfs.ext4", "-q", path)


def put_partition_table(path: Path) -> None:
    sector = bytearray(512)
    sector[446:462] = bytes.fromhex("00000000 83000000 00080000 00f80000".replace(" ", ""))
    sector[510:] = b"\x55\xaa"
    with path.open("r+b") as file:
        file.write(sector)


def put_guid_partition_table(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(512)
        file.write(b"EFI PART")


def put_swap(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096 - 10)
        file.write(b"SWAPSPACE2")


def put_shardfs(path: Path) -> None:
    output_of("mkfs", path)


def put_shardfs_with_a_lost_front(path: Path) -> None:
    output_of("mkfs", path)
    with path.open("r+b") as file:
        file.write(bytes(4096))


@pytest.mark.parametrize("on_loop_device", [False, True])
@pytest.mark.parametrize(
    ("put", "name"),
    [
        (put_ext4, "ext4"),
        (put_partition_table, "mbr partition table"),
        (put_guid_partition_table, "gpt"),
        (put_swap, "swap"),
        (put_shardfs, "shardfs"),
        (put_shardfs_with_a_lost_front, "shardfs"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_formatted_already(
    put: Callable[[Path], None],
    name: str,
    on_loop_device: bool,
    image_file: Path,
    loop_device: LoopDeviceFactory,
) -> None:
    device = loop_device(64 * MIB) if on_loop_device else image_file
    put(device)
    before = image_hash(device)
    refused("mkfs", device, saying=f"carries {name}")
    assert image_hash(device) == before
    output_of("mkfs", device, "--force")
    assert "clean" in output_of("fsck", device)


def test_a_file_with_content(tmp_path: Path, untouched: KEEP) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader\n" * 4_000_000)
    untouched(path)
    refused("mkfs", path, saying="a file with content")
    refused("mkfs", path, "--size", "64M", saying="exists already")
    refused("mkfs", tmp_path / "absent.img", saying="--size")
    refused("mkfs", tmp_path / "no" / "such.img", "--size", "64M", saying="cannot make")


# --- read-only device -----------------------------------------------------------------------


def test_write_protected_device(
    loop_device: LoopDeviceFactory, mountpoint: Path, untouched: KEEP
) -> None:
    device = loop_device(64 * MIB)
    output_of("mkfs", device)
    output_of("mount", device, mountpoint)
    (mountpoint / "file").write_text("hello")
    output_of("umount", mountpoint)
    run_command("blockdev", "--setro", device)
    try:
        untouched(device)
        output_of("mount", device, mountpoint)
        assert (mountpoint / "file").read_text() == "hello"
        assert "ro" in run_command("findmnt", "-no", "OPTIONS", mountpoint).split(",")
        with pytest.raises(OSError, match="Read-only"):
            (mountpoint / "other").write_text("x")
        output_of("umount", mountpoint)
        refused("mkfs", device, "--force", saying="write-protected")
    finally:
        run_command("blockdev", "--setrw", device)


def test_read_only_mount_touches_nothing(
    formatted: Path, mountpoint: Path, untouched: KEEP
) -> None:
    output_of("mount", formatted, mountpoint)
    (mountpoint / "file").write_text("hello")
    output_of("sync", mountpoint)
    kill_server_of(mountpoint)  # a crash: recovery has something to do
    untouched(formatted)
    mount_over_a_dead_one(formatted, mountpoint, "-o", "ro")
    assert (mountpoint / "file").read_text() == "hello"
    output_of("umount", mountpoint)


def mount_over_a_dead_one(image: Path, mountpoint: Path, *options: str) -> None:
    """Mount where the server of a mount has died; it is told that the dead one was taken away."""
    done = run("mount", image, mountpoint, *options)
    assert done.returncode == 0, done
    note = f"shardfs: note: took away {mountpoint}, whose server had gone\n"
    assert done.stderr.decode() == note


def test_read_only_mount_of_a_fresh_store(
    formatted: Path, mountpoint: Path, untouched: KEEP
) -> None:
    untouched(formatted)
    refused("mount", formatted, mountpoint, "-o", "ro", saying="never mounted")


# --- mount points ---------------------------------------------------------------------------


def test_missing_mountpoint(formatted: Path, tmp_path: Path, untouched: KEEP) -> None:
    untouched(formatted)
    refused("mount", formatted, tmp_path / "absent", saying="mkdir -p")


def test_mountpoint_is_a_file(formatted: Path, tmp_path: Path, untouched: KEEP) -> None:
    untouched(formatted)
    (tmp_path / "file").write_text("x")
    refused("mount", formatted, tmp_path / "file", saying="not a directory")


def test_mountpoint_is_not_empty(formatted: Path, mountpoint: Path, untouched: KEEP) -> None:
    untouched(formatted)
    (mountpoint / "file").write_text("x")
    refused("mount", formatted, mountpoint, saying="not empty")
    assert (mountpoint / "file").read_text() == "x"


def test_stale_mountpoint(formatted: Path, mountpoint: Path) -> None:
    output_of("mount", formatted, mountpoint)
    (mountpoint / "file").write_text("hello")
    output_of("sync", mountpoint)
    kill_server_of(mountpoint)
    with pytest.raises(OSError, match="not connected"):
        os.statvfs(mountpoint)
    mount_over_a_dead_one(formatted, mountpoint)
    assert (mountpoint / "file").read_text() == "hello"
    output_of("umount", mountpoint)
    assert find_mount(mountpoint) is None


def test_dev_fuse_is_missing(formatted: Path, mountpoint: Path, untouched: KEEP) -> None:
    untouched(formatted)
    in_a_bare_dev(formatted, mountpoint, "true", saying="there is no /dev/fuse")


def in_a_bare_dev(image: Path, mountpoint: Path, prepare: str, *, saying: str) -> None:
    """Mount in a mount namespace whose /dev has next to nothing; refused if `saying` something."""
    from tests.mounted.mounts import SHARDFS

    script = f"""
        mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 || exit 99
        {prepare}
        exec {SHARDFS} mount "$0" "$1"
    """
    command = ["unshare", "--mount", "sh", "-c", script, str(image), str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespace of our own to be had: {done.stderr.strip()}")
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    assert saying in done.stderr


# --- the command line itself ----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("mend",),
        ("mkfs",),
        ("mkfs", "--size"),
        ("mkfs", "image", "--size", "large"),
        ("mkfs", "image", "--colour"),
        ("info", "a", "b"),
        ("shards", "mend"),
        ("--loud", "info"),
    ],
    ids=" ".join,
)
def test_wrong_command_lines(arguments: tuple[str, ...]) -> None:
    refused(*arguments, saying="--help")


@pytest.mark.parametrize("option", ["nonsense", "ro,nonsense", "dirty=much", "dirty=1", "ro=1"])
def test_unknown_mount_option(option: str, formatted: Path, mountpoint: Path) -> None:
    refused("mount", formatted, mountpoint, "-o", option, saying="option")
    assert find_mount(mountpoint) is None


@pytest.mark.parametrize("command", ["umount", "sync", "stat"])
def test_not_a_mount(command: str, tmp_path: Path) -> None:
    refused(command, tmp_path, saying="not a mount point")
    refused(command, "/proc", saying="not a shardfs one")
    refused(command, tmp_path / "absent", saying="not a mount point")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--label", "x" * 65),
        ("--extent-size", "3M"),
        ("--extent-size", "4K"),
        ("--extent-size", "64K"),
    ],
    ids=" ".join,
)
def test_impossible_format(arguments: tuple[str, ...], image_file: Path, untouched: KEEP) -> None:
    untouched(image_file)
    refused("mkfs", image_file, *arguments)
