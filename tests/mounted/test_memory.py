"""The memory of a real server, as the kernel counts it."""

from __future__ import annotations

import json
import os

from shardfs import limits
from tests.mounted.conftest import LoopDeviceFactory, MountFactory
from tests.mounted.mounts import shardfs

MIB = limits.MIB


def test_a_server_keeps_to_its_bound(
    loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> None:
    """While a file is written that is larger than the bound, and while many are made and read."""
    mounted = mount_shardfs(loop_device(2 * limits.GIB), ["cache=192M"])

    def look() -> dict[str, int]:
        figures = json.loads(shardfs("stat", mounted.path, "--json"))
        assert figures["memory_bound_bytes"] == 192 * MIB
        assert figures["resident_bytes"] <= 192 * MIB
        use: dict[str, int] = figures["memory_use_bytes"]
        assert sum(use.values()) <= 192 * MIB
        return use

    assert 10 * MIB < look()["program"] < 100 * MIB
    block = os.urandom(MIB)
    with (mounted.path / "large").open("wb", buffering=0) as file:
        for number in range(256):
            file.write(block)
            if number % 64 == 63:
                look()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert look()["dirty"] == 0
    with (mounted.path / "large").open("rb", buffering=0) as file:
        while data := file.read(MIB):
            assert data == block
    look()
    for number in range(1000):
        (mounted.path / f"file-{number}").write_bytes(b"x")
    use = look()
    assert use["inodes"] >= 1000 * limits.INODE_MEMORY_BYTES
    assert use["known_to_kernel"] >= 1000 * 100
