"""A damaged image behind a real mount: right bytes or EIO, never anything else; scrub names what
has rotted, and a repair mends it.

Role: data is damaged at random places, in the frames of an unmounted image.
"""

from __future__ import annotations

import errno
import json
import random
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.mounted.mounts import SHARDFS, MountedShardfs, shardfs

FRAME_OF_DATA = re.compile(rb"SHF1\x02")
COUNT = 60


def fill(root: Path, source: random.Random) -> dict[str, bytes]:
    files = {}
    for number in range(COUNT):
        folder = root / f"folder{number % 4}"
        folder.mkdir(exist_ok=True)
        data = source.randbytes(source.choice((100, 4096, 50000, 300000)))
        (folder / f"file{number}").write_bytes(data)
        files[f"folder{number % 4}/file{number}"] = data
    return files


def rot(image: Path, source: random.Random, count: int) -> None:
    data = image.read_bytes()
    places = [found.start() for found in FRAME_OF_DATA.finditer(data)]
    with image.open("r+b") as file:
        for place in source.sample(places, count):
            file.seek(place + 48 + 18 + 8 + source.randrange(90))
            file.write(b"\xa5\x5a")


def read_all(root: Path, files: dict[str, bytes]) -> set[str]:
    """Paths that cannot be read. Raises: AssertionError for a wrong byte."""
    unreadable = set()
    for path, data in files.items():
        try:
            assert (root / path).read_bytes() == data, path
        except OSError as error:
            assert error.errno == errno.EIO, path
            unreadable.add(path)
    return unreadable


def scrub(mounted: MountedShardfs, word: str, *arguments: str) -> dict[str, Any]:
    """Answer of `shardfs scrub`, whose exit status says whether anything has rotted."""
    command = [str(SHARDFS), "scrub", word, str(mounted.path), *arguments, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    answer: dict[str, Any] = json.loads(run.stdout)
    assert run.returncode == bool(answer["damaged_bytes"]), run.stderr
    return answer


def test_right_bytes_or_an_error(mounted_shardfs: MountedShardfs) -> None:
    source = random.Random(11)
    mounted = mounted_shardfs
    files = fill(mounted.path, source)
    mounted.umount()
    rot(mounted.device, source, 12)
    mounted.expected_log_patterns = ["damaged", "do not match"]

    mounted.start()
    unreadable = read_all(mounted.path, files)
    assert 0 < len(unreadable) <= 12
    answer = scrub(mounted, "start", "--rate", "100G")
    deadline = time.monotonic() + 60
    while answer["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
        answer = scrub(mounted, "status")
    assert answer["state"] == "done"
    assert {each["path"].lstrip("/") for each in answer["found"]} == unreadable
    mounted.umount()

    found = json.loads(shardfs("fsck", mounted.device, "--data", "--json", expected_status=1))
    told = " ".join(each["where"] for each in found["findings"])
    assert all(f"/{path} " in told for path in unreadable)
    report = json.loads(shardfs("fsck", mounted.device, "--repair", "--json", expected_status=1))
    lost = {each["path"].lstrip("/") for each in report["repair"]["lost"]}
    assert report["clean"] and lost == unreadable
    mounted.start()
    assert read_all(mounted.path, files) == unreadable
    victim = mounted.path / min(unreadable)
    victim.write_bytes(b"new")
    assert victim.read_bytes() == b"new"
