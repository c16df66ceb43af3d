"""`shardfs inspect`, `tree` and `cp-out`: structures as fields and files without mounting, on whole
and on damaged images."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from shardfs import limits
from tests.cli.commands import image_hash, output_of, run
from tests.cli.samples import SAMPLE_BYTES, make_sample
from tests.cli.test_json_schemas import in_this_process

EXTENT = limits.MIB


@pytest.fixture
def sample(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """An image, and what is in its files."""
    path = tmp_path / "disk.img"
    return path, make_sample(path)


def damage(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    return json.loads(in_this_process([*map(str, words), "--json"], capsys))


def fields(document: dict[str, Any]) -> dict[str, str]:
    return {f"{each['structure']}.{each['name']}": each["value"] for each in document["fields"]}


def test_structures(
    sample: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = sample
    first, second = told(capsys, "inspect", "super", image)
    assert first["records"] == second["records"] > 0
    record = fields(first["shown"][0])
    assert record["superblock record.label"] == '"sample"'
    assert record["superblock record.flags"] == "1"
    manifest = told(capsys, "inspect", "manifest", image)
    assert manifest["troubles"] == [] and int(fields(manifest)["manifest.segment_count"]) == 1
    (segment,) = told(capsys, "inspect", "run", image)["segments"]
    index = told(capsys, "inspect", "run", image, segment["index"])
    assert index["troubles"] == [] and "run index.filter" in fields(index)
    at = [int(fields(index)[f"block reference 0: locator.{n}"]) for n in ("extent", "offset")]
    block = told(capsys, "inspect", "run", image, f"{at[0]}:{at[1]}")
    assert block["troubles"] == [] and "inode.mode" in fields(block)
    photo = told(capsys, "inspect", "record", image, "/photo")
    assert [each["source"].split()[0] for each in photo["versions"]] == ["delta", "delta", "run"]
    assert fields(photo["versions"][0])["inode.size"] == "700000"
    extent = told(capsys, "inspect", "extent", image, "2")
    ends = [0, *(span["end"] for span in extent["spans"])]
    assert ends[:-1] == [span["start"] for span in extent["spans"]] and ends[-1] == EXTENT
    assert any(span["frame"] and span["frame"]["kind"] == "DELTA" for span in extent["spans"])


def test_which_checksum_fails_is_said(
    sample: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = sample
    ranges = told(capsys, "map", image, "photo")["ranges"]
    whole = next(each for each in ranges if each["length"] > 65_536)
    damage(image, whole["address"] + 40_000 - whole["skip"], b"\0\0\0\0")
    chunk = told(capsys, "inspect", "chunk", image, "--offset", str(whole["frame"]))
    assert (
        len(chunk["troubles"]) == 1
        and f"granule {40_000 // limits.GRANULE_BYTES} " in chunk["troubles"][0]
    )
    damage(image, whole["frame"] + 20, b"\1")
    chunk = told(capsys, "inspect", "chunk", image, "--offset", str(whole["frame"]))
    assert any("header checksum" in each for each in chunk["troubles"])
    assert run("inspect", "chunk", image, "--offset", str(whole["frame"])).returncode == 1


def test_random_bytes_crash_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "random.img"
    for seed in range(20):
        chance = random.Random(seed)
        image.write_bytes(chance.randbytes(2 * limits.MIB))
        told(capsys, "inspect", "super", image)
        told(capsys, "inspect", "extent", image, "1", "--extent-size", "1M")
        told(capsys, "inspect", "chunk", image, "--offset", str(chance.randrange(limits.MIB)))


def test_flipped_bits_crash_nothing(
    sample: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = sample
    (segment,) = told(capsys, "inspect", "run", image)["segments"]
    extent, offset = map(int, segment["index"].split(":"))
    places = (0, EXTENT, 2 * EXTENT, extent * EXTENT + offset)
    for seed in range(40):
        chance = random.Random(seed)
        place = chance.choice(places)
        at = place + chance.randrange(300)
        with image.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
        damage(image, at, bytes([old[0] ^ 1 << chance.randrange(8)]))
        told(capsys, "inspect", "super", image, "--all")
        told(capsys, "inspect", "chunk", image, "--offset", str(place), "--hex")
        told(capsys, "inspect", "record", image, "/photo")
        out = tmp_path / f"out-{seed}"
        told(capsys, "cp-out", image, "/", out, "--ignore-errors")
        damage(image, at, old)


def test_without_any_superblock(
    sample: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = sample
    frame = told(capsys, "map", image, "photo")["ranges"][0]["frame"]
    for copy in range(2):
        damage(image, copy * EXTENT, bytes(EXTENT))
    assert run("inspect", "super", image).returncode == 1
    done = run("inspect", "extent", image, "4")
    assert done.returncode == 2 and b"--extent-size" in done.stderr
    number, offset = divmod(frame, EXTENT)
    extent = told(capsys, "inspect", "extent", image, str(number), "--extent-size", "1M")
    assert offset in [span["start"] for span in extent["spans"] if span["what"] == "frame"]
    chunk = told(capsys, "inspect", "chunk", image, "--offset", str(frame))
    assert chunk["troubles"] == []


def test_shards_why_and_df_open_a_store_with_a_lost_run(
    sample: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = sample
    (segment,) = told(capsys, "inspect", "run", image)["segments"]
    extent, offset = map(int, segment["index"].split(":"))
    damage(image, extent * EXTENT + offset + 80, b"\xff\xfe\xfd")
    assert run("fsck", image).returncode == 1
    for line in (("df", image), ("why", image, "4"), ("shards", "ls", image)):
        done = run(*line)
        assert b"shardfs: note: " in done.stderr and b"lost" in done.stderr, (line, done)
        assert done.returncode in (0, 1) and done.stdout, (line, done)


# --- files without mounting ---------------------------------------------------------------------


def content_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_a_tree_copied_out(sample: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    image, files = sample
    before = image_hash(image)
    out = tmp_path / "out"
    output_of("cp-out", image, "/", out)
    assert content_of(out) == files
    assert os.readlink(out / "link") == "notes/todo"
    assert (out / "todo").stat().st_ino == (out / "notes/todo").stat().st_ino
    assert os.getxattr(out / "photo", "user.place") == b"Oslo"
    sparse = (out / "notes/sparse").stat()
    assert sparse.st_blocks * 512 < sparse.st_size // 8
    assert (out / "photo").stat().st_mode & 0o777 == 0o644
    shown = output_of("tree", image)
    for name in ("├── link -> notes/todo", "│   ├── sparse", "├── photo"):
        assert name in shown
    assert image_hash(image) == before
    done = run("cp-out", image, "/", out)
    assert done.returncode == 1 and b"File exists" in done.stderr
    assert content_of(out) == files, "nothing was overwritten"
    into = tmp_path / "into"
    into.mkdir()
    output_of("cp-out", image, "notes", into)
    assert (into / "notes/todo").read_bytes() == files["notes/todo"]


def test_no_wrong_byte_is_copied_out(
    sample: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, files = sample
    ranges = told(capsys, "map", image, "photo")["ranges"]
    at = ranges[-1]["address"] + 1000
    damage(image, at, bytes(64))
    assert run("cp-out", image, "photo", tmp_path / "copy").returncode == 1
    assert list(tmp_path.glob("copy*")) == []
    out = tmp_path / "out"
    copied = told(capsys, "cp-out", image, "/", out, "--ignore-errors")
    found = content_of(out)
    assert found.pop("photo.damaged")[:1000] == files["photo"][:1000]
    assert found == {name: data for name, data in files.items() if name != "photo"}
    lost = [False] * len(files["photo"])
    for each in copied["damaged"]:
        assert each["path"] == "photo"
        lost[each["start"] : each["start"] + each["length"]] = [True] * each["length"]
    kept = (out / "photo.damaged").read_bytes()
    wrong = [n for n, byte in enumerate(kept) if byte != files["photo"][n] and not lost[n]]
    assert wrong == [] and 0 < sum(lost) <= limits.GRANULE_BYTES
    verified = run("shards", "verify", image, "photo")
    assert verified.returncode == 1 and b"/photo bytes " in verified.stdout


def test_a_lost_run_index_hides_what_it_held_and_nothing_older_comes_back(
    sample: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, files = sample
    (segment,) = told(capsys, "inspect", "run", image)["segments"]
    extent, offset = map(int, segment["index"].split(":"))
    damage(image, extent * EXTENT + offset + 100, bytes(64))
    assert run("tree", image).returncode == 1
    assert run("inspect", "run", image, segment["index"]).returncode == 1
    shown = run("extents", image)
    assert shown.returncode == 0 and b"note: a part of run 1 of the tree is lost" in shown.stderr
    told(capsys, "lsm", image)
    told(capsys, "whereis", image, "--offset", "0", "--length", str(SAMPLE_BYTES))
    out = tmp_path / "out"
    copied = told(capsys, "cp-out", image, "/", out, "--ignore-errors")
    assert copied["failed"] or copied["damaged"]
    for name, data in content_of(out).items():
        if not name.endswith(".damaged"):
            assert files[name] == data


def test_a_device_that_was_cut_off(
    sample: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, files = sample
    os.truncate(image, SAMPLE_BYTES // 2)
    out = tmp_path / "out"
    told(capsys, "cp-out", image, "/", out, "--ignore-errors")
    assert content_of(out) == files, "all of it lay before the cut"
