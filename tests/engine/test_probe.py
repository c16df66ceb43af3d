"""Probing finds what others have left on a disk, and finds nothing on an empty one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfs.engine.block_device import open_device
from shardfs.engine.images import create_image
from shardfs.engine.probe import MAGICS, Magic, Signature, probe, users_of

MIB = 1024 * 1024
SIZE_BYTES = 80 * MIB


def reader_of(pieces: dict[int, bytes], size_bytes: int = SIZE_BYTES) -> Callable[..., bytes]:
    """A read function over zeros with a few pieces of content, that refuses to go beyond."""

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= size_bytes, "read beyond the device"
        content = bytearray(length)
        for start, data in pieces.items():
            for index, byte in enumerate(data):
                if 0 <= start + index - offset < length:
                    content[start + index - offset] = byte
        return bytes(content)

    return read


def names(pieces: dict[int, bytes], size_bytes: int = SIZE_BYTES) -> list[str]:
    return [signature.name for signature in probe(reader_of(pieces, size_bytes), size_bytes)]


def test_an_empty_device_carries_nothing() -> None:
    assert names({}) == []


@pytest.mark.parametrize("magic", MAGICS, ids=lambda magic: f"{magic.name} at {magic.offset}")
def test_every_magic_is_found_where_it_belongs(magic: Magic) -> None:
    offset = magic.offset if magic.offset >= 0 else SIZE_BYTES + magic.offset
    found = probe(reader_of({offset: magic.magic}), SIZE_BYTES)
    assert found == [Signature(magic.name, offset, len(magic.magic))]
    damaged = bytes([magic.magic[0] ^ 1]) + magic.magic[1:]
    assert names({offset: damaged}) == []


@pytest.mark.parametrize(
    "compatible, incompatible, name",
    [(0, 0x2, "ext2"), (0x4, 0x2 | 0x4, "ext3"), (0x4, 0x2C2, "ext4"), (0, 0x8, "ext journal")],
)
def test_ext_versions_are_told_apart(compatible: int, incompatible: int, name: str) -> None:
    features = compatible.to_bytes(4, "little") + incompatible.to_bytes(4, "little")
    assert names({1024 + 56: b"\x53\xef", 1024 + 92: features}) == [name]


def test_software_raid_at_the_end_is_found() -> None:
    size_bytes = SIZE_BYTES + 5 * 4096
    assert names({SIZE_BYTES - 64 * 1024: b"\xfc\x4e\x2b\xa9"}, SIZE_BYTES) == ["md raid"]
    assert names({size_bytes - 8192: b"\xfc\x4e\x2b\xa9"}, size_bytes) == ["md raid"]


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("label", [0, 256 * 1024, SIZE_BYTES - 512 * 1024, SIZE_BYTES - 256 * 1024])
def test_zfs_labels_are_found(order: str, label: int) -> None:
    magic = (0x00BAB10C).to_bytes(8, "little" if order == "little" else "big")
    assert names({label + 132 * 1024: magic}) == ["zfs"]


def test_partition_tables_and_boot_sectors() -> None:
    entry = b"\x80\x20\x21\x00\x83\xdf\x13\x0c\x00\x08\x00\x00\x00\x20\x03\x00"
    mark = {510: b"\x55\xaa"}
    assert names(mark) == ["boot sector"]
    assert names({446: entry, **mark}) == ["mbr partition table"]
    assert names({446: b"\x17" + entry[1:], **mark}) == ["boot sector"]
    assert names({446: entry, 512: b"EFI PART", **mark}) == ["gpt"], "a protective table"
    assert names({3: b"NTFS    ", **mark}) == ["ntfs"]


def test_several_signatures_come_in_the_order_of_their_bytes() -> None:
    end = SIZE_BYTES - 512
    found = probe(reader_of({end: b"EFI PART", 0: b"XFSB", 4086: b"SWAPSPACE2"}), SIZE_BYTES)
    assert [(each.name, each.offset) for each in found] == [
        ("xfs", 0),
        ("swap", 4086),
        ("gpt", end),
    ]


def test_own_formats_are_passed_in() -> None:
    own = Magic("shardfs", 8192, b"OWN MAGIC")
    found = probe(reader_of({8192: b"OWN MAGIC"}), SIZE_BYTES, [own])
    assert found == [Signature("shardfs", 8192, 9)]


@given(st.integers(0, 70_000), st.binary(max_size=600))
def test_small_devices_are_never_read_beyond(size_bytes: int, front: bytes) -> None:
    probe(reader_of({0: front}, size_bytes), size_bytes)


FAST_KEY = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
TOOLS = {
    "ext2": ["mkfs.ext2", "-q", "-F"],
    "ext3": ["mkfs.ext3", "-q", "-F"],
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "vfat": ["mkfs.vfat"],
    "exfat": ["mkfs.exfat"],
    "ntfs": ["mkfs.ntfs", "-q", "-F"],
    "f2fs": ["mkfs.f2fs", "-q", "-f"],
    "swap": ["mkswap"],
    "LUKS": ["cryptsetup", "-q", "luksFormat", *FAST_KEY, "--key-file", "/proc/version"],
}


@pytest.mark.parametrize("name", TOOLS)
def test_what_real_tools_make_is_found(name: str, tmp_path: Path) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    tool = shutil.which(TOOLS[name][0], path=path)
    if tool is None:
        pytest.skip(f"{TOOLS[name][0]} is not installed")
    image = tmp_path / "image"
    create_image(image, 400 * MIB)
    subprocess.run([tool, *TOOLS[name][1:], str(image)], check=True, capture_output=True)
    device = open_device(image, read_only=True)
    found = [signature.name for signature in probe(device.read_blocking, device.size_bytes)]
    device.close()
    assert set(found) == {name}
    blkid = shutil.which("blkid", path=path)
    if blkid is not None:
        command = [blkid, "-p", "-o", "value", "-s", "TYPE", str(image)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        assert answer == {"LUKS": "crypto_LUKS"}.get(name, name)


def test_an_image_file_in_no_use_has_no_users(tmp_path: Path) -> None:
    create_image(tmp_path / "image", MIB)
    assert users_of(tmp_path / "image") == []
