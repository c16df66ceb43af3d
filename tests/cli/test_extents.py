"""The map of the extents, in the terminal and as a picture."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from shardfs.cli.extent_kinds import KINDS, kind_of, sums_of
from shardfs.cli.extent_map import ROWS_MAX, map_lines
from shardfs.cli.extent_svg import draw_svg
from tests.cli.commands import output_of, refused, run
from tests.cli.samples import make_sample
from tests.mounted.mounts import SHARDFS

EXTENT = 1 << 20


def extent(number: int, state: str = "free", stream: str = "", **sizes: int) -> dict[str, Any]:
    """An extent as requests have it."""
    figures = {"epoch": 1, "write_pointer": 0, "live_bytes": 0, "garbage_bytes": 0, "order": 0}
    return {"extent": number, "state": state, "stream": stream, **figures, **sizes}


SMALL = [
    extent(0, "superblock", live_bytes=EXTENT),
    extent(1, "superblock", live_bytes=EXTENT),
    extent(2, "open", "meta", write_pointer=4096, live_bytes=4096),
    extent(3, "sealed", "data", write_pointer=EXTENT, live_bytes=EXTENT),
    extent(4, "sealed", "survivors", write_pointer=EXTENT, live_bytes=EXTENT // 2),
    extent(5, "sealed", "hot", write_pointer=EXTENT, garbage_bytes=EXTENT),
    extent(6, "open", "runs", write_pointer=EXTENT // 2, live_bytes=1000),
    extent(7),
]


def drawn(extents: list[dict[str, Any]], width: int, *, unicode: bool = True) -> list[str]:
    return [line.plain.rstrip() for line in map_lines(extents, EXTENT, width, unicode=unicode)]


def test_every_kind_has_a_letter_and_a_colour_of_its_own() -> None:
    assert [kind_of(each).letter for each in SMALL] == list("SSLDCHT.")
    assert len({kind.letter for kind in KINDS}) == len({kind.color for kind in KINDS}) == 7


def test_a_small_map() -> None:
    kinds, live, garbage, empty, *legend = drawn(SMALL, 80)
    assert kinds == "0        SSlDCHt."
    assert (live[9:], garbage[9:], empty) == ("██ █▄", "     █", "")
    assert drawn(SMALL, 80, unicode=False)[1][9:] == "99 94"
    text = "\n".join(legend)
    assert "extent 2 is being written: write pointer 4096 (0 %)" in text
    assert "extent 6 is being written: write pointer 524288 (50 %)" in text


@pytest.mark.parametrize("width", [24, 40, 80, 200])
@pytest.mark.parametrize("count", [24, 64, 1000, 32_768])
def test_maps_fit_the_terminal(width: int, count: int) -> None:
    extents = [{**SMALL[number % 8], "extent": number} for number in range(count)]
    lines = drawn(extents, width)
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line[:9].strip().isdecimal()]
    assert 0 < len(rows) <= ROWS_MAX
    cells = sum(len(line[9:]) for line in rows)
    assert cells == count or f"each cell is {-(-count // cells)} extents" in lines


def test_sums() -> None:
    sums = sums_of(SMALL, EXTENT)
    assert (sums.count, len(sums.open), sums.garbage_bytes) == (8, 2, EXTENT)
    assert sums.live_bytes == 3 * EXTENT + EXTENT // 2 + 4096 + 1000


def test_the_picture() -> None:
    root = ElementTree.fromstring(draw_svg(SMALL, EXTENT, "<disk> & more"))
    space = "{http://www.w3.org/2000/svg}"
    tips = [each.text or "" for each in root.iter(f"{space}title")]
    assert len(tips) == len(SMALL)
    assert tips[4].startswith("extent 4: data, cold") and "live 512 KiB (50 %)" in tips[4]
    assert len(list(root.iter(f"{space}line"))) == 2, "write pointers of the two open ones"
    assert "<disk> & more" in [each.text for each in root.iter(f"{space}text")]


def test_the_command(tmp_path: Path) -> None:
    image, picture = tmp_path / "disk.img", tmp_path / "map.svg"
    make_sample(image)
    text = output_of("extents", image)
    assert "\x1b" not in text, "colours are for terminals"
    assert max(map(len, text.splitlines())) <= max(80, len(str(image)) + 40)
    assert text.splitlines()[1].startswith("0        SS")
    rows = output_of("extents", image, "--table").splitlines()
    assert rows[1].split()[:3] == ["0", "-", "superblock"]
    assert output_of("extents", image, "--svg", picture) == ""
    ElementTree.parse(picture)
    output_of("extents", image, "--svg", picture)
    picture.write_text("mine")
    refused("extents", image, "--svg", picture, saying="is no SVG of this command")
    assert run("extents", image, "--svg", tmp_path / "no" / "map.svg").returncode == 1


def test_who_reads_no_further_is_no_error(tmp_path: Path) -> None:
    """rich makes an exit of a broken pipe."""
    image = tmp_path / "disk.img"
    output_of("mkfs", image, "--size", "64M")
    command = f"{SHARDFS} extents {image} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
