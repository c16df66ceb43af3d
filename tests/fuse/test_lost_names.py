"""What fsck says of a store of which the tree, or all of the superblock, is lost."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import trio

from shardfs.checking.image_device import ImageDevice
from shardfs.cli import main
from shardfs.engine.framing import decode_head
from shardfs.errors import NotShardfsError
from shardfs.fuse.repair import check_device
from tests.fuse.damage_targets import EXTENT_BYTES, LINKS, SIZE_BYTES, Ground, make_ground


@pytest.fixture(scope="module")
def ground() -> Ground:
    return trio.run(make_ground)


def damaged(ground: Ground, structure: str) -> bytearray:
    image = bytearray(ground.image)
    for frame in ground.frames[structure]:
        image[(frame.start + frame.end) // 2] ^= 1
    return image


@pytest.mark.parametrize("structure", ["run block", "run index", "manifest"])
async def test_files_behind_a_lost_tree_are_named(ground: Ground, structure: str) -> None:
    report, _ = await check_device(ImageDevice(damaged(ground, structure)), data=True)
    text = " ".join(map(str, report.findings)).replace(",", " ").replace(":", " ")
    late = {"late", "a/b/renamed"}  # what stands in the log alone may still be read
    for path in ground.tree.keys() - late:
        assert any(f"/{name} " in text for name in LINKS.get(path, (path,))), (path, text)


async def test_without_data_the_numbers_of_inodes_are_said(ground: Ground) -> None:
    report, _ = await check_device(ImageDevice(damaged(ground, "run index")), data=False)
    told = [str(finding) for finding in report.findings]
    assert any("files with inode numbers" in each and "--data" in each for each in told), told


def test_a_lost_superblock_is_a_finding_that_says_what_to_do(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "disk.img"
    for lost in (bytes(2 * EXTENT_BYTES), random.Random(1).randbytes(2 * EXTENT_BYTES)):
        image.write_bytes(lost + ground.image[2 * EXTENT_BYTES :])
        assert main.run(["fsck", "--data", str(image)]) == 1
        told = capsys.readouterr()
        assert "shardfs salvage" in told.out and "/a/file2" in told.out and not told.err
        assert "fsck --repair" not in told.out
        assert main.run(["fsck", "--repair", str(image)]) == 1
        assert "shardfs salvage" in capsys.readouterr().err


async def test_what_never_was_a_store_is_none() -> None:
    with pytest.raises(NotShardfsError):
        await check_device(ImageDevice(bytearray(SIZE_BYTES)), data=True)


@pytest.mark.parametrize("how", ["bit", "zeroed"])
@pytest.mark.parametrize("data", [False, True])
async def test_whose_last_changes_are_lost_with_the_log(
    ground: Ground, how: str, data: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")
    image = bytearray(ground.image)
    last = max(ground.frames["delta"], key=lambda each: decode_head(image, each.start).sequence)
    if how == "bit":
        image[last.used_end - 1] ^= 1
    else:
        image[last.start : last.end] = bytes(last.end - last.start)
    report, _ = await check_device(ImageDevice(image), data=data)
    told = [each.message for each in report.findings if each.invariant == "E5"]
    guessed = [each for each in told if "damaged, changed as far as" in each]
    assert bool(guessed) == (how == "bit")
    assert all("/late" in each and "/a/b/renamed" in each for each in guessed)
    assert ("what else was changed last cannot be known" in told) == (how == "zeroed")
    written = [each for each in told if "was written last for" in each]
    assert written == (["data was written last for /a/b/renamed, /late: it may be lost"] * data)
