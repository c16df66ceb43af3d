"""The server of a full disk killed while it is filled, emptied or tidied: the cycle goes on.

Role: SIGKILL in the middle of each part of a cycle. Then fsck finds nothing, the next mount comes
up by itself, what was made durable is there, and the disk takes as many bytes as it did at first.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.commands import run_on_a_terminal
from tests.mounted.conftest import ImageFactory, LoopDeviceFactory, MountFactory
from tests.mounted.full_load import (
    GIB,
    MIB,
    Filling,
    differences,
    empty,
    fill,
    free_bytes,
    wait_for_free,
)
from tests.mounted.mounts import SHARDFS, MountedShardfs, run_command, shardfs

ACCEPTED_SHARE_OFF_MAX = 0.02
FREE_SHARE_WHEN_EMPTY_MIN = 0.99
FSYNCED_SHARE = 1 / 16
SECONDS_PER_FSCK_MAX = 600.0
GONE = (errno.ENOTCONN, errno.ECONNABORTED)


@dataclass
class Witness:
    """What was written to a mount, and what of it was made durable, up to the kill.

    Args:
        mounted: whose server is killed.
        kill_at_bytes: after so many bytes have been written.
        rng: which files are made durable.
    """

    mounted: MountedShardfs
    kill_at_bytes: int
    rng: random.Random
    written: Filling = field(default_factory=Filling)
    durable: Filling = field(default_factory=Filling)

    def after_write(self, file: int, name: str, taken: int) -> None:
        """A write(2) has brought the file `name` to `taken` bytes."""
        self.written.sizes[name] = taken
        if self.rng.random() < FSYNCED_SHARE:
            os.fsync(file)
            self.durable.sizes[name] = taken
        if self.written.accepted_bytes >= self.kill_at_bytes:
            self.mounted.strike()


def until_killed(mounted: MountedShardfs, work: Callable[[], object]) -> None:
    """Do work that meets the kill, have fsck look at what is left, and mount again."""
    with pytest.raises(OSError) as error:
        work()
    assert error.value.errno in GONE
    mount_again(mounted)


def mount_again(mounted: MountedShardfs) -> None:
    """After the server has been killed."""
    mounted.kill()
    run_command(SHARDFS, "fsck", mounted.device, "--data", seconds_max=SECONDS_PER_FSCK_MAX)
    mounted.start()


def keep_whole(folder: Path, written: Filling) -> int:
    """Remove the files that a kill has cut short, and no others; bytes of those that stay."""
    kept = 0
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = str(path.relative_to(folder))
        size = written.sizes.get(name, 0)
        if differences(folder, Filling({name: size}, [])):
            path.unlink()
        else:
            kept += size
    return kept


@dataclass
class KilledCycles:
    """Cycles of one mount, with a kill in each.

    Args:
        mounted: empty.
        mix: of full_load.MIXES.
        rng: says when the kills come.
    """

    mounted: MountedShardfs
    mix: str
    rng: random.Random
    fresh_bytes: int = field(init=False)
    first_bytes: int = field(init=False)
    seed: int = 0

    def __post_init__(self) -> None:
        self.fresh_bytes = free_bytes(self.mounted.path)
        self.first_bytes = self.fill("first").accepted_bytes
        self.empty()

    def fill(self, name: str) -> Filling:
        self.seed += 1
        return fill(self.mounted.path / name, self.mix, self.seed)

    def empty(self) -> None:
        """Remove everything; what it took has to come back."""
        empty(self.mounted.path)
        wanted = int(FREE_SHARE_WHEN_EMPTY_MIN * self.fresh_bytes)
        assert wait_for_free(self.mounted.path, wanted) >= wanted, "the space has not come back"

    def fill_and_kill(self, name: str, share_max: float) -> int:
        """Fill, with a kill on the way; bytes of the whole files that it leaves."""
        self.seed += 1
        folder = self.mounted.path / name
        kill_at = int(self.rng.uniform(0.1, share_max) * self.first_bytes)
        witness = Witness(self.mounted, kill_at, self.rng)
        until_killed(
            self.mounted,
            lambda: fill(folder, self.mix, self.seed, after_write=witness.after_write),
        )
        assert witness.durable.sizes, "nothing was made durable"
        lost = [line for line in differences(folder, witness.durable) if " bytes, not " not in line]
        assert lost == [], "fsync had returned"
        for path_name, size in witness.durable.sizes.items():
            assert (folder / path_name).stat().st_size >= size, path_name
        return keep_whole(folder, witness.written)

    def is_as_full_as_at_first(self, accepted_bytes: int) -> None:
        off = abs(accepted_bytes - self.first_bytes)
        assert off <= ACCEPTED_SHARE_OFF_MAX * self.first_bytes, (accepted_bytes, self.first_bytes)

    # --- one cycle each -----------------------------------------------------------------------

    def killed_while_filling_and_emptying(self) -> None:
        kept_bytes = self.fill_and_kill("killed", 0.98)
        folder = self.mounted.path / "rest"
        rest = self.fill("rest")
        self.is_as_full_as_at_first(kept_bytes + rest.accepted_bytes)
        shardfs("sync", self.mounted.path)
        left = self.rng.randrange(len(rest.sizes))

        def before_unlink(path: Path) -> None:
            del rest.sizes[str(path.relative_to(folder))]
            if len(rest.sizes) <= left:
                self.mounted.strike()

        until_killed(self.mounted, lambda: empty(folder, before_unlink=before_unlink))
        assert differences(folder, rest) == [], "durable, and never removed"
        self.empty()

    def killed_while_tidied(self) -> None:
        """With every second file gone, in gc; then while the disk is filled up again."""
        folder = self.mounted.path / "thinned"
        filling = self.fill("thinned")
        self.is_as_full_as_at_first(filling.accepted_bytes)
        for name in list(filling.sizes)[::2]:
            (folder / name).unlink()
            del filling.sizes[name]
        shardfs("sync", self.mounted.path)
        status = run_on_a_terminal(
            "gc",
            "--now",
            self.mounted.path,
            until=b" moved, ",
            then=lambda gc: self.mounted.strike(),
        )
        assert status in (0, 2), "done, or the mount has ended"
        mount_again(self.mounted)
        assert differences(folder, filling) == [], "durable before gc"
        share_max = 0.95 * (1 - filling.accepted_bytes / self.first_bytes)
        kept_bytes = self.fill_and_kill("again", share_max)
        assert differences(folder, filling) == [], "durable before the disk was filled again"
        kept_bytes += filling.accepted_bytes
        self.is_as_full_as_at_first(kept_bytes + self.fill("rest").accepted_bytes)
        self.empty()

    def run(self) -> None:
        """Two cycles, with a kill in each of their parts."""
        self.killed_while_filling_and_emptying()
        self.killed_while_tidied()


def test_killed_in_each_part_of_a_cycle(
    make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    mounted = mount_shardfs(make_image(64 * MIB), seconds_max=170)
    KilledCycles(mounted, "mixed", random.Random(1)).run()


def test_killed_in_gc_and_after_it_on_a_block_device(
    loop_device: LoopDeviceFactory, mount_shardfs: MountFactory
) -> None:
    mounted = mount_shardfs(loop_device(64 * MIB), seconds_max=170)
    KilledCycles(mounted, "mixed", random.Random(2)).killed_while_tidied()


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("mix", ["4K", "1G", "mixed"])
@pytest.mark.parametrize("size_bytes", [64 * MIB, GIB], ids=["64MiB", "1GiB"])
def test_killed_in_twenty_cycles(
    size_bytes: int, mix: str, make_image: ImageFactory, mount_shardfs: MountFactory
) -> None:
    mounted = mount_shardfs(make_image(size_bytes), seconds_max=3 * 3500)
    cycles = KilledCycles(mounted, mix, random.Random(mix))
    for _ in range(2 if size_bytes == GIB and mix == "4K" else 10):
        cycles.run()
