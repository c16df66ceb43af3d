"""`shardfs grow`, `shrink` and `trim` on image files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import trio

from shardfs.engine.block_device import open_device
from shardfs.engine.fsck import check_store
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from tests.cli.commands import image_hash, output_of, refused
from tests.mounted.mounts import SHARDFS

MIB = 1024 * 1024
VALUE_BYTES = 100_000


def value_of(number: int) -> bytes:
    return b"%08d" % number * (VALUE_BYTES // 8)


def fill(image: Path, count: int) -> None:
    """Values in the store of an image; a second opening deletes every third one."""

    async def work() -> None:
        device = open_device(image)
        try:
            async with Store.open(device) as store:
                for number in range(count):
                    await store.put(b"\xf0 %04d" % number, value_of(number))
                for number in range(0, count, 3):
                    await store.delete(b"\xf0 %04d" % number)
        finally:
            device.close()

    trio.run(work)


def require_content(image: Path, count: int) -> None:
    """What `fill` has left is there, and every structure is sound."""

    async def work() -> None:
        device = open_device(image, read_only=True)
        try:
            async with Store.open(device, options=StoreOptions(read_only=True)) as store:
                for number in range(count):
                    expected = None if number % 3 == 0 else value_of(number)
                    assert await store.get(b"\xf0 %04d" % number) == expected
                report = await check_store(store, data=True)
                assert report.is_clean, report.findings[:5]
        finally:
            device.close()

    trio.run(work)


def geometry_of(image: Path) -> tuple[int, int]:
    """Size and number of extents that the store says it has."""
    facts = json.loads(output_of("info", image, "--json"))
    return facts["device_bytes"], facts["extent_count"]


def test_an_image_grows(formatted: Path) -> None:
    fill(formatted, 100)
    said = output_of("grow", formatted, "--size", "100M")
    assert "64 MiB -> 100 MiB, 100 extents" in said
    assert (os.stat(formatted).st_size, geometry_of(formatted)) == (100 * MIB, (100 * MIB, 100))
    require_content(formatted, 100)
    os.truncate(formatted, 120 * MIB + 77)
    assert geometry_of(formatted) == (100 * MIB, 100)
    facts = json.loads(output_of("grow", formatted, "--json"))
    assert facts["before_bytes"] == 100 * MIB
    assert facts["device_bytes"] == 120 * MIB
    assert facts["extent_count"] == 120
    assert facts["free_bytes"] > 60 * MIB
    require_content(formatted, 100)


def test_growing_is_refused_where_it_gains_nothing(formatted: Path, image_file: Path) -> None:
    refused("grow", formatted, saying="nothing to gain")
    refused("grow", formatted, "--size", "63M", saying="use: shardfs shrink")
    refused("grow", formatted, "--size", "1T", saying="8589934592 bytes can be used")
    refused("grow", formatted.with_name("missing"), saying="cannot open")
    assert os.stat(formatted).st_size == 64 * MIB


def test_what_carries_no_shardfs_is_left_alone(image_file: Path) -> None:
    digest = image_hash(image_file)
    for command in (["grow", "--size", "80M"], ["shrink", "--size", "30M"], ["trim"]):
        refused(command[0], image_file, *command[1:], saying="no shardfs")
    assert image_hash(image_file) == digest


def test_an_image_shrinks_and_its_file_is_cut_off(formatted: Path) -> None:
    fill(formatted, 300)
    said = output_of("shrink", formatted, "--size", "48M")
    assert "64 MiB -> 48 MiB, 48 extents" in said
    assert (os.stat(formatted).st_size, geometry_of(formatted)) == (48 * MIB, (48 * MIB, 48))
    require_content(formatted, 300)
    refused("shrink", formatted, "--size", "48M", saying="use: shardfs grow")
    # As when it was interrupted before the file was cut off.
    os.truncate(formatted, 64 * MIB)
    facts = json.loads(output_of("shrink", formatted, "--size", "48M", "--json"))
    assert (facts["device_bytes"], os.stat(formatted).st_size) == (48 * MIB, 48 * MIB)
    require_content(formatted, 300)


def test_a_shrink_that_would_not_fit_is_refused_before_anything_moves(formatted: Path) -> None:
    fill(formatted, 450)
    said = refused("shrink", formatted, "--size", "25M", status=1, saying="bytes short")
    words = said.split()
    assert int(words[1]) > 0
    assert geometry_of(formatted) == (64 * MIB, 64)
    output_of("shrink", formatted, "--size", words[words.index("would", words.index("bytes;")) - 1])
    require_content(formatted, 450)
    refused("shrink", formatted, "--size", "10M", saying="has at least 25165824 bytes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_shrink_leaves_one_size_or_the_other(
    formatted: Path, number: signal.Signals
) -> None:
    fill(formatted, 400)
    for delay in (0.4, 0.8, 1.6):
        process = subprocess.Popen(
            [str(SHARDFS), "shrink", str(formatted), "--size", "50M"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        process.send_signal(number)
        process.wait(60)
        assert geometry_of(formatted) in {(64 * MIB, 64), (50 * MIB, 50)}
        require_content(formatted, 400)
    if geometry_of(formatted)[1] == 64:
        output_of("shrink", formatted, "--size", "50M")
    assert geometry_of(formatted) == (50 * MIB, 50)
    require_content(formatted, 400)


def test_trimming_makes_an_image_file_sparse(formatted: Path) -> None:
    fill(formatted, 100)
    with formatted.open("r+b") as image:  # as a copy without holes
        content = image.read()
        image.seek(0)
        image.write(content)
        os.fsync(image.fileno())
    assert os.stat(formatted).st_blocks * 512 >= 64 * MIB
    facts = json.loads(output_of("trim", formatted, "--json"))
    assert 30 * MIB < facts["discarded_bytes"] < 64 * MIB
    held = os.stat(formatted).st_blocks * 512
    assert held <= 64 * MIB - facts["discarded_bytes"] + MIB
    assert os.stat(formatted).st_size == 64 * MIB
    require_content(formatted, 100)
    assert "discarded" in output_of("trim", formatted)
