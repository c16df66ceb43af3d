"""Every command that prints tables, in a real terminal of 80 and of 200 columns.

Role: tmux is the terminal. A line that is wider than it is broken where it ends, and tmux knows
which lines it has broken: joined again they would be longer than the terminal is wide.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.commands import run
from tests.cli.on_a_terminal import MARK
from tests.cli.samples import make_sample

SECONDS_MAX = 240
ON_A_DEVICE = (
    "extents {image}",
    "extents {image} --table",
    "shards ls {image}",
    "shards show {image} photo",
    "shards show {image} notes/sparse",
    "shards verify {image}",
    "map {image} photo",
    "map {image} notes/sparse",
    "whereis {image} --offset 5M",
    "whereis {image} --offset 0 --length 32M",
    "inspect super {image} --all",
    "inspect extent {image} 4",
    "inspect chunk {image} 4:0 --hex",
    "inspect manifest {image}",
    "inspect run {image}",
    "inspect record {image} /photo",
    "lsm {image}",
    "tree {image}",
    "df {image}",
    "why {image} 4",
    "why {image} photo",
    "df {damaged}",
    "shards ls {damaged}",
    "why {damaged} photo",
    "fsck --data {image}",
    "fsck --data {damaged}",
    "undelete --list {image}",
    "info {image}",
    "doctor {image}",
)
ON_A_MOUNT = (
    "top {mount} --once --interval 0.2",
    "stat {mount}",
    "pending {mount}",
    "scrub status {mount}",
    "df {mount}",
    "extents {mount}",
)
pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole image and a damaged one."""
    folder = tmp_path_factory.mktemp("i")
    made = {name: folder / f"{name}.img" for name in ("image", "damaged")}
    make_sample(made["image"])
    content = bytearray(made["image"].read_bytes())
    for start in range(2 << 20, len(content), 1 << 20):
        content[start + 5000] ^= 1
        content[start + 60000] ^= 1
    made["damaged"].write_bytes(content)
    return made


def on_a_terminal(folder: Path, columns: int, commands: list[str]) -> dict[str, list[str]]:
    """What tmux shows of each command line, lines that it has broken put together again."""
    (folder / "commands").write_text("".join(f"{number}|{each}\n" for number, each in
                                             enumerate(commands)))  # fmt: skip
    socket = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
    program = [sys.executable, "-m", "tests.cli.on_a_terminal", str(folder / "commands")]
    script = f"{shlex.join(program)}; {shlex.join(socket)} wait-for -S done; sleep {SECONDS_MAX}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "LC_ALL": "C.UTF-8"}

    def tmux(*arguments: str) -> str:
        found = subprocess.run(
            [*socket, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=True,
        )
        return found.stdout

    size = ["-x", str(columns), "-y", "50"]
    tmux("start-server", ";", "set-option", "-g", "history-limit", "50000", ";",
         "new-session", "-d", *size, script)  # fmt: skip
    try:
        tmux("wait-for", "done")
        text = tmux("capture-pane", "-p", "-J", "-S", "-", "-E", "-")
    finally:
        tmux("kill-server")
    shown: dict[str, list[str]] = {}
    number = ""
    for line in text.splitlines():
        if line.startswith(f"{MARK}status"):
            assert line.removeprefix(f"{MARK}status ").strip() in ("0", "1"), (number, line)
        elif line.startswith(MARK):
            number = line.removeprefix(MARK).strip()
            shown[commands[int(number)]] = []
        elif number:
            shown[commands[int(number)]].append(line.rstrip())
    return shown


def require_fitting(shown: dict[str, list[str]], commands: list[str], columns: int) -> None:
    """Every command has said something, and no line was broken by the terminal."""
    assert list(shown) == commands
    assert [command for command, lines in shown.items() if not lines] == []
    broken = {
        command: [line for line in lines if len(line) > columns] for command, lines in shown.items()
    }
    assert {command: lines for command, lines in broken.items() if lines} == {}


@pytest.mark.parametrize("columns", [80, 200])
def test_an_unmounted_device(images: dict[str, Path], columns: int) -> None:
    commands = [each.format(image="image.img", damaged="damaged.img") for each in ON_A_DEVICE]
    folder = images["image"].parent
    require_fitting(on_a_terminal(folder, columns, commands), commands, columns)


@pytest.mark.parametrize("columns", [80, 200])
def test_a_mount(
    tmp_path: Path,
    images: dict[str, Path],
    mountpoint: Path,
    columns: int,
    make_copy: Callable[[Path], Path],
) -> None:
    assert run("mount", make_copy(images["image"]), mountpoint).returncode == 0
    (mountpoint / "new").write_bytes(b"new" * 10_000)
    commands = [each.format(mount=shlex.quote(mountpoint.name)) for each in ON_A_MOUNT]
    require_fitting(on_a_terminal(tmp_path, columns, commands), commands, columns)


@pytest.fixture
def make_copy(tmp_path: Path) -> Callable[[Path], Path]:
    """make_copy(image): another one with the same bytes."""
    return lambda image: Path(shutil.copy(image, tmp_path / "copy.img"))
