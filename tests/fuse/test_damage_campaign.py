"""The damage campaign: whatever is done to a device, no wrong byte, no hang, no crash; fsck names
the files that are hit, and after a repair everything else is as it was.

Role: each kind of structure and each field of the format, each kind of damage, in every run; 1,000
seeds of each are scripts/damage_campaign.
"""

from __future__ import annotations

import logging
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import trio

from shardfs.cli import main
from shardfs.engine.layout import TABLES
from shardfs.fuse import records
from tests.fuse.damage_campaign import OF_A_FIELD, Campaign, Failure
from tests.fuse.damage_run import FAILURES_KEPT, Standing, judged, report
from tests.fuse.damage_targets import Ground, make_ground

PARTS = 4
MEMORY_BYTES_MAX = 400 << 20
CHANGING = {"mkfs", "mount", "umount", "grow", "shrink", "trim", "gc", "install", "sync", "check"}


@pytest.fixture(autouse=True)
def _stores_may_complain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")


@pytest.fixture(scope="module")
def ground() -> Ground:
    return trio.run(make_ground)


def test_every_field_of_the_format_is_a_target(ground: Ground) -> None:
    tables = [*TABLES, records.INODE, records.ENTRY, records.FACTS, records.ACCESS_LIST]
    tables += [records.ACCESS_ENTRY, records.NAME_PAGE, records.NAMED_INODE, records.LINKED_NAME]
    fields = {target.replace(": locator:", ":") for target in Campaign(ground).targets}
    locators = {"manifest", "chunk", "block reference", "segment"}
    for table in tables:
        for _, _, field, _ in table.describe():
            owners = locators if table.name == "locator" else {table.name}
            assert {f"{owner}: {field}" for owner in owners} <= fields, (table.name, field)


@pytest.mark.parametrize("part", range(PARTS))
async def test_every_field_and_every_kind_of_damage(
    ground: Ground, part: int, tmp_path: Path
) -> None:
    campaign, standing = Campaign(ground), Standing(tmp_path / "standing.json")
    for target in campaign.targets[part::PARTS]:
        for seed in range(len(OF_A_FIELD)):
            await judged(campaign, campaign.case(target, seed), standing)
    assert not standing.failures, report([standing])
    outcomes = [each for counts in standing.outcomes.values() for each in counts]
    assert {"mended", "with loss", "found", "legal", "harmless"} <= set(outcomes)


def test_a_campaign_goes_on_where_it_stood(ground: Ground, tmp_path: Path) -> None:
    campaign, standing = Campaign(ground), Standing(tmp_path / "standing.json")
    case = campaign.case("inode: size", 3)
    standing.count(case, "mended", 0.5)
    try:
        raise Failure("wrong bytes")
    except Failure as error:
        standing.fail(case, error)
    standing.write()
    again = Standing(standing.path)
    assert again.next == {"inode: size": 4} and len(again.failures) == 1 < FAILURES_KEPT
    assert "scripts/damage_campaign --case 'inode: size' 3" in report([again])


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
    ("target", "seed"), [("run block", 1), ("data", 3), ("superblock", 4), ("inode: size", 7)]
)
def test_every_inspecting_command_ends_with_one_line(
    ground: Ground,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    target: str,
    seed: int,
) -> None:
    image = tmp_path / "disk.img"
    campaign = Campaign(ground)
    original = bytes(campaign.damage(campaign.case(target, seed))[0])
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
