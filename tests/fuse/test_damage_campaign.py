"""The damage campaign: whatever is done to a device, no wrong byte, no hang, no crash; fsck names
the files that are hit, and after a repair everything else is as it was.

Role: for each kind of structure, each field of its frame and each way to damage it, some seeds in
every run, and 1,000 where it is slow.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import trio

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.cli import main
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError, NotShardfsError
from shardfs.fuse.repair import check_device, needs_new_tree, repair_device
from tests.fuse.damage import DAMAGES, LOOKING, Sample, Tree, fields_of, make_sample, read_tree

KINDS = ("superblock", "manifest", "run index", "run block", "delta", "data", "name page")
SECONDS_PER_CASE_MAX = 120.0
MEMORY_BYTES_MAX = 400 << 20
CHANGING = {"mkfs", "mount", "umount", "grow", "shrink", "trim", "gc", "install", "sync", "check"}


@pytest.fixture(autouse=True)
def _stores_may_complain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")


@pytest.fixture(scope="module")
def sample() -> Sample:
    return trio.run(make_sample)


def cases(kind: str, seeds: int) -> Iterator[tuple[str, str, int]]:
    """(field, damage, seed); only a flipped bit hits one field alone."""
    for seed in range(seeds):
        for field, _, _ in fields_of(kind, 0, 4096):
            yield field, "bit", seed
        for how in DAMAGES:
            if how != "bit":
                yield "", how, seed


def damage(sample: Sample, kind: str, field: str, how: str, seed: int) -> SimulatedDevice:
    source = random.Random(f"{kind} {field} {how} {seed}")
    start, length = source.choice(sample.places[kind])
    if field:
        parts = {name: (at, size) for name, at, size in fields_of(kind, start, length)}
        start, length = parts[field]
    image = bytearray(sample.image)
    DAMAGES[how](image, start, length, source)
    return SimulatedDevice.from_image(bytes(image))


async def looked_at(device: SimulatedDevice) -> tuple[Tree, set[str]] | None:
    """What a reader gets; None if the store cannot be opened."""
    try:
        async with Store.open(device, options=LOOKING) as store:
            return await read_tree(store)
    except (CorruptionError, DeviceError, NotShardfsError):
        return None


def wrong(sample: Sample, tree: Tree) -> list[str]:
    """Paths that read as something that never was there."""
    return [
        path
        for path, data in tree.items()
        if data != sample.tree.get(path) and not path.startswith("lost+found")
    ]


async def campaign(sample: Sample, kind: str, seeds: int) -> dict[str, int]:
    """Every case of a kind of structure; how many there were, of which outcome."""
    outcomes: dict[str, int] = {}
    for field, how, seed in cases(kind, seeds):
        with trio.fail_after(SECONDS_PER_CASE_MAX):
            outcome = await judge(sample, kind, field, how, seed)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


async def judge(sample: Sample, kind: str, field: str, how: str, seed: int) -> str:
    """One case: what came of it; an assertion fails if that is not right."""
    case = (kind, field, how, seed)
    device = damage(sample, kind, field, how, seed)
    before, _ = await check_device(device, data=True)
    found = await looked_at(device)
    unreadable: set[str] = set()
    if found is not None:
        tree, unreadable = found
        assert wrong(sample, tree) == [], case
        findings = "\n".join(map(str, before.findings))
        if not needs_new_tree(before):
            gone = (sample.tree.keys() - tree.keys()) | unreadable
            assert [path for path in gone if path and f"/{path} " not in findings] == [], case
    else:
        assert not before.is_clean, case
    try:
        report = await repair_device(device)
    except CorruptionError as error:
        assert "salvage" in str(error), case
        return "refused"
    assert report.after.findings == [], case
    again = await looked_at(device)
    assert again is not None, case
    tree, unreadable = again
    assert wrong(sample, tree) == [], case
    paths = [each.path for each in report.lost]
    paths += [each.path for each in report.actions if "lost" in each.what]
    lost = {(path or "").lstrip("/") for path in paths}
    assert unreadable <= lost, (case, unreadable - lost)
    missing = sample.tree.keys() - tree.keys() - unreadable
    assert not missing or how in ("lost", "cut"), (case, missing)
    if before.is_clean:
        return "harmless"
    return "with loss" if unreadable or missing else "mended"


@pytest.mark.parametrize("kind", KINDS)
async def test_no_damage_gives_wrong_bytes_and_repair_mends(sample: Sample, kind: str) -> None:
    outcomes = await campaign(sample, kind, 1)
    assert "refused" not in outcomes and sum(outcomes.values()) == 15, outcomes
    assert outcomes.get("mended", 0) + outcomes.get("with loss", 0) > 3, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_a_thousand_seeds(sample: Sample, kind: str) -> None:
    seeds = int(os.environ.get("SHARDFS_DAMAGE_SEEDS", "1000"))
    outcomes = await campaign(sample, kind, seeds)
    print(f"\n{kind}: {seeds} seeds for each field and damage: {outcomes}")


# --- commands -----------------------------------------------------------------------------------


def inspecting_commands() -> Iterator[tuple[list[str], click.Command]]:
    """Every command that looks at an unmounted device."""

    def below(
        words: list[str], command: click.Command
    ) -> Iterator[tuple[list[str], click.Command]]:
        if isinstance(command, click.Group):
            for name, inner in sorted(command.commands.items()):
                if words or name not in CHANGING:
                    yield from below([*words, name], inner)
        elif any(isinstance(each, click.Argument) for each in command.params):
            yield words, command

    yield from below([], main.group)


def call(words: list[str], command: click.Command, image: Path, new: Path) -> list[str]:
    """A command line: the image first, then what else it must have."""
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    line = [*words, str(image)]
    for argument in arguments[1:]:
        if argument.required:
            line.append(str(new) if "dir" in (argument.name or "") else "a/file0")
    return line


# A command that ends at damage leaves its scan to the end of the event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "how"), [("run block", "zeroed"), ("data", "lost"), ("superblock", "cut")]
)
def test_every_inspecting_command_ends_with_one_line(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, how: str
) -> None:
    image = tmp_path / "disk.img"
    original = bytes(damage(sample, kind, "", how, 1).image())
    root = logging.getLogger()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    for words, command in inspecting_commands():
        image.write_bytes(original)
        new = tmp_path / "new"
        handlers, level = list(root.handlers), root.level
        try:
            status = main.run(call(words, command, image, new))
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        shutil.rmtree(new, ignore_errors=True)
        told = capsys.readouterr()
        assert status in (0, 1, 2), words
        assert "unexpected" not in told.err and "Traceback" not in told.err, (words, told.err)
        count += 1
    assert count >= 8
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MEMORY_BYTES_MAX
