"""What is on a device already: signatures of file systems, volumes and partition tables.

Role: lets mkfs refuse a disk that somebody may still want. It names whatever a disk of the
last decades is likely to carry; anything it does not know it does not see.

Invariants:
    I1  Only reads, through the function it is given, and never beyond the device.
    I2  A signature is exact bytes at an exact place. Where those bytes are few, a second fact
        must agree (the partition table's entries, the ext feature flags).

Ordering: none.

Not here: whether the device is in use (claims.users_of, offered here as well, because whoever
asks one question should ask the other), and shardfs's own superblock, which the caller passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from shardfs.engine.claims import users_of

__all__ = ["Magic", "Signature", "probe", "users_of"]

Read = Callable[[int, int], bytes]

KIB: Final = 1024


class Signature(NamedTuple):
    """Something found: its name for people, and where its magic bytes lie."""

    name: str
    offset: int
    length: int


class Magic(NamedTuple):
    """Bytes that give a format away, at `offset`; a negative offset counts from the end."""

    name: str
    offset: int
    magic: bytes


MAGICS: Final = (
    Magic("xfs", 0, b"XFSB"),
    Magic("btrfs", 64 * KIB + 64, b"_BHRfS_M"),
    Magic("btrfs", 64 * KIB * KIB + 64, b"_BHRfS_M"),
    Magic("bcache", 4 * KIB + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    Magic("bcachefs", 4 * KIB + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
    Magic("f2fs", KIB, b"\x10\x20\xf5\xf2"),
    Magic("f2fs", 5 * KIB, b"\x10\x20\xf5\xf2"),
    Magic("jfs", 32 * KIB, b"JFS1"),
    Magic("reiserfs", 8 * KIB + 52, b"ReIsErFs"),
    Magic("reiserfs", 64 * KIB + 52, b"ReIsEr2Fs"),
    Magic("reiserfs", 64 * KIB + 52, b"ReIsEr3Fs"),
    Magic("nilfs2", KIB + 6, b"\x34\x34"),
    Magic("gfs2", 64 * KIB, b"\x01\x16\x19\x70\x00\x00\x00\x01"),
    Magic("ocfs2", 8 * KIB, b"OCFSV2"),
    Magic("ceph bluestore", 0, b"bluestore block device"),
    Magic("squashfs", 0, b"hsqs"),
    Magic("squashfs", 0, b"sqsh"),
    Magic("erofs", KIB, b"\xe2\xe1\xf5\xe0"),
    Magic("cramfs", 0, b"\x45\x3d\xcd\x28"),
    Magic("romfs", 0, b"-rom1fs-"),
    Magic("iso9660", 32 * KIB + 1, b"CD001"),
    Magic("udf", 32 * KIB + 1, b"BEA01"),
    Magic("ntfs", 3, b"NTFS    "),
    Magic("bitlocker", 3, b"-FVE-FS-"),
    Magic("refs", 3, b"ReFS\x00"),
    Magic("exfat", 3, b"EXFAT   "),
    Magic("vfat", 82, b"FAT32   "),
    Magic("vfat", 54, b"FAT16   "),
    Magic("vfat", 54, b"FAT12   "),
    Magic("vfat", 54, b"FAT     "),
    Magic("apfs", 32, b"NXSB"),
    Magic("hfsplus", KIB, b"H+\x00\x04"),
    Magic("hfsplus", KIB, b"HX\x00\x05"),
    Magic("LUKS", 0, b"LUKS\xba\xbe"),
    *(Magic("LUKS", copy * KIB, b"SKUL\xba\xbe") for copy in (16, 32, 64, 128, 256, 512, 1024)),
    *(Magic("LVM2", sector * 512, b"LABELONE") for sector in range(4)),
    Magic("stratis", 512 + 4, b"!Stra0tis\x86\xff\x02^\x41rh"),
    Magic("stratis", 9 * 512 + 4, b"!Stra0tis\x86\xff\x02^\x41rh"),
    Magic("vdo", 0, b"dmvdo001"),
    Magic("dm-integrity", 0, b"integrt\x00"),
    Magic("dm-verity", 0, b"verity\x00\x00"),
    Magic("md raid", 0, b"\xfc\x4e\x2b\xa9\x01\x00\x00\x00"),
    Magic("md raid", 4 * KIB, b"\xfc\x4e\x2b\xa9\x01\x00\x00\x00"),
    Magic("intel raid", -1024, b"Intel Raid ISM Cfg Sig. "),
    Magic("ddf raid", -512, b"\xde\x11\xde\x11"),
    *(Magic("gpt", place, b"EFI PART") for place in (512, 4 * KIB, -512, -4 * KIB)),
    *(
        Magic(name, page * KIB - 10, magic)
        for page in (4, 8, 16, 64)
        for name, magic in (
            ("swap", b"SWAPSPACE2"),
            ("swap", b"SWAP-SPACE"),
            ("hibernation image", b"S1SUSPEND\x00"),
            ("hibernation image", b"LINHIB0001"),
        )
    ),
)

_BOOT_MARK: Final = b"\x55\xaa"
_HAS_BOOT_MARK_TOO: Final = frozenset({"ntfs", "bitlocker", "refs", "exfat", "vfat", "gpt"})
_ZFS_LABEL_BYTES: Final = 256 * KIB
_ZFS_UBERBLOCK: Final = (0x00BAB10C).to_bytes(8, "little"), (0x00BAB10C).to_bytes(8, "big")
_MD_MAGIC: Final = b"\xfc\x4e\x2b\xa9"


def probe(read: Read, size_bytes: int, own: Sequence[Magic] = ()) -> list[Signature]:
    """What a device carries, in the order of its bytes; empty when it looks unused.

    Args:
        read: exactly `length` bytes from byte `offset`.
        size_bytes: the device's size.
        own: further formats to look for, shardfs itself among them.

    Raises: whatever `read` raises.
    """
    reader = _Reader(read, size_bytes)
    found = set(_probe_magics(reader, [*MAGICS, *own]))
    for probe_one in (_probe_ext, _probe_md_at_end, _probe_zfs):
        found.update(probe_one(reader))
    if not any(signature.name in _HAS_BOOT_MARK_TOO for signature in found):
        found.update(_probe_mbr(reader))
    return sorted(found, key=lambda signature: (signature.offset, signature.name))


class _Reader:
    """Reads that end where the device ends; the front, where most of it lies, is read once."""

    def __init__(self, read: Read, size_bytes: int) -> None:
        self._read = read
        self.size_bytes = size_bytes
        self._front = bytes(read(0, min(size_bytes, 128 * KIB)))

    def read(self, offset: int, length: int) -> bytes:
        """The bytes, or nothing when the device does not reach that far."""
        if offset < 0 or offset + length > self.size_bytes:
            return b""
        if offset + length <= len(self._front):
            return self._front[offset : offset + length]
        return bytes(self._read(offset, length))


def _probe_magics(reader: _Reader, magics: Sequence[Magic]) -> Iterator[Signature]:
    for name, place, magic in magics:
        offset = place if place >= 0 else reader.size_bytes + place
        if reader.read(offset, len(magic)) == magic:
            yield Signature(name, offset, len(magic))


def _probe_ext(reader: _Reader) -> Iterator[Signature]:
    """ext2, ext3 and ext4 share a magic; their features tell them apart."""
    superblock = reader.read(KIB, KIB)
    if superblock[56:58] != b"\x53\xef":
        return
    compatible = int.from_bytes(superblock[92:96], "little")
    incompatible = int.from_bytes(superblock[96:100], "little")
    has_journal, is_journal_device, ext3_knows = 0x4, 0x8, 0x2 | 0x4 | 0x10
    if incompatible & is_journal_device:
        name = "ext journal"
    elif incompatible & ~ext3_knows:
        name = "ext4"
    else:
        name = "ext3" if compatible & has_journal else "ext2"
    yield Signature(name, KIB + 56, 2)


def _probe_md_at_end(reader: _Reader) -> Iterator[Signature]:
    """Versions 0.90 and 1.0 of Linux software RAID stand near the end of the device."""
    version_0_90 = reader.size_bytes // (64 * KIB) * (64 * KIB) - 64 * KIB
    version_1_0 = (reader.size_bytes - 8 * KIB) // (4 * KIB) * (4 * KIB)
    for offset in (version_0_90, version_1_0):
        if reader.read(offset, len(_MD_MAGIC)) == _MD_MAGIC:
            yield Signature("md raid", offset, len(_MD_MAGIC))


def _probe_zfs(reader: _Reader) -> Iterator[Signature]:
    """Four labels, two at either end; the second half of each is a ring of uberblocks."""
    end = reader.size_bytes // _ZFS_LABEL_BYTES * _ZFS_LABEL_BYTES
    half = _ZFS_LABEL_BYTES // 2
    for label in (0, _ZFS_LABEL_BYTES, end - 2 * _ZFS_LABEL_BYTES, end - _ZFS_LABEL_BYTES):
        ring = reader.read(label + half, half)
        for place in range(0, len(ring), KIB):
            if ring[place : place + 8] in _ZFS_UBERBLOCK:
                yield Signature("zfs", label + half + place, 8)
                break


def _probe_mbr(reader: _Reader) -> Iterator[Signature]:
    """A boot mark, with a plausible partition table or without partitions."""
    sector = reader.read(0, 512)
    if sector[510:] != _BOOT_MARK:
        return
    entries = [sector[place : place + 16] for place in range(446, 510, 16)]
    plausible = all(entry[0] in (0x00, 0x80) for entry in entries)
    used = any(entry[4] and entry[12:16] != bytes(4) for entry in entries)
    yield Signature("mbr partition table" if plausible and used else "boot sector", 510, 2)
