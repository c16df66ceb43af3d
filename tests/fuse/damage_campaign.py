"""The damage campaign: one case after the other, each judged, resumable, with a report.

Role: `scripts/damage_campaign`, and the bounded forms in test_damage_campaign.py. A target is a
kind of structure or a field, by name. A case is a target and a seed, which decides the kind of
damage and its place; it can be repeated by these two.

Invariants:
    I1. Checksums left as they were: no wrong byte is read, fsck finds what is hit and names the
        file, a second fsck after a repair is clean, and what was not hit is as before.
    I2. Checksums mended as well: any value may be legal; nothing crashes, hangs, or takes memory
        without bound.

Not here: the store (damage_targets.py), the command line (campaign_command.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import trio

from shardfs.checking.image_device import ImageDevice
from shardfs.checking.mending import FrameMender
from shardfs.engine.dissection import dissect_frame
from shardfs.engine.findings import Report
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, NoSpaceError, ShardfsError
from shardfs.fuse.record_dissection import dissection_of
from shardfs.fuse.repair import check_device, repair_device
from shardfs.fuse.repair_report import RepairReport
from tests.fuse.damage import LOOKING, Tree, flip_bit, read_tree, swap_sectors, zero_sector
from tests.fuse.damage_targets import EXTENT_BYTES, FORMER_NAMES, LINKS, Field, FramePlace, Ground

MENDED: Final = ", mended"
OF_A_STRUCTURE: Final = ("bit", "zeroed", "swapped", "lost", "cut")
OF_A_FIELD: Final = (
    "bit", "value", "zeroed", "swapped", "lost", "cut", f"bit{MENDED}", f"value{MENDED}",
)  # fmt: skip
_CHECKSUMS: Final = ("frame header: checksum", "frame: digests")
SECONDS_PER_CASE_MAX: Final = 300.0
MEMORY_BYTES_MAX: Final = 128 << 20
"""What one case may add to the memory of the process."""
_DRAWS_MAX: Final = 16


@dataclass(frozen=True)
class Case:
    """A target, by name, and a seed."""

    target: str
    how: str
    seed: int

    @property
    def is_mended(self) -> bool:
        """The checksums fit the damage."""
        return self.how.endswith(MENDED)


class Failure(Exception):
    """A case did not come out as it has to."""


class Campaign:
    """Cases on one ground.

    Args:
        ground: which is damaged.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._fields: dict[str, dict[str, list[Field]]] = {}
        for name, places in ground.fields.items():
            structure, _, field = name.partition(": ")
            self._fields.setdefault(field, {})[structure] = places
        frames = [each for places in ground.frames.values() for each in places]
        self._mender = FrameMender(ground.image, [(each.start, each.end) for each in frames])
        self._referenced = [
            each for each in frames if each.structure not in ("superblock", "delta")
        ]

    @property
    def targets(self) -> list[str]:
        """Every kind of structure, and every field as "TABLE: FIELD"."""
        return [*sorted(self.ground.frames), *sorted(self._fields)]

    def case(self, target: str, seed: int) -> Case:
        """The case of a seed."""
        hows: tuple[str, ...] = OF_A_STRUCTURE
        if target not in self.ground.frames:
            hows = OF_A_FIELD
            if target in _CHECKSUMS:
                hows = tuple(each for each in hows if not each.endswith(MENDED))
        return Case(target, hows[seed % len(hows)], seed)

    def damage(self, case: Case) -> tuple[bytearray, Field]:
        """A damaged image, and what was aimed at."""
        source = random.Random(f"{case.target} {case.seed}")
        image = bytearray(self.ground.image)
        for _ in range(_DRAWS_MAX):
            aim = self._aim(case, source)
            _strike(image, aim, case.how.removesuffix(MENDED), source, self._others(case, aim))
            if case.is_mended:
                self._mender.mend(image, aim.frame.start, aim.frame.end)
            if image != self.ground.image:
                break
        return image, aim

    def _aim(self, case: Case, source: random.Random) -> Field:
        if case.target in self.ground.frames:
            frame = source.choice(self.ground.frames[case.target])
            return Field(frame, frame.start, frame.end - frame.start)
        by_structure = self._fields[case.target]
        return source.choice(by_structure[source.choice(sorted(by_structure))])

    def _others(self, case: Case, aim: Field) -> list[bytes]:
        """What the field is elsewhere."""
        places = self._fields.get(case.target, {}).get(aim.frame.structure, [])
        return [
            self.ground.image[each.start : each.start + each.length]
            for each in places
            if each.length == aim.length
        ]

    # --- judging ------------------------------------------------------------------------------

    async def judge(self, case: Case) -> str:
        """What came of a case.

        Raises:
            Failure: not what has to. Anything else: it crashed.
        """
        image, aim = self.damage(case)
        if image == self.ground.image:
            return "no change"
        with trio.fail_after(SECONDS_PER_CASE_MAX):
            if case.is_mended:
                return await self._judge_mended(image, aim.frame)
            return await self._judge_damaged(case, image)

    async def _judge_mended(self, image: bytearray, frame: FramePlace) -> str:
        """I2."""
        dissection = dissection_of(bytes(image[frame.start : frame.end]))
        dissect_frame(dissection)
        device = ImageDevice(image)
        try:
            found = await look(device)
            report = await repair_device(device)
        except ShardfsError as error:
            _require("\n" not in str(error), f"more than one line: {error}")
            return f"refused ({type(error).__name__})"
        if not report.after.is_clean:
            return "not mended"
        if found is None or not report.before.is_clean:
            return "found"
        return "legal"

    async def _judge_damaged(self, case: Case, image: bytearray) -> str:
        """I1."""
        hit = [
            each
            for each in self._referenced
            if image[each.start : each.used_end] != self.ground.image[each.start : each.used_end]
        ]
        device = ImageDevice(image)
        found = await look(device)
        try:
            report = await repair_device(device)
        except (CorruptionError, NoSpaceError) as error:
            _require("salvage" in str(error) or isinstance(error, NoSpaceError), str(error))
            before, _ = await check_device(device, data=True)
            self._require_named(case, found, before, hit)
            return "refused"
        self._require_named(case, found, report.before, hit)
        _require(report.after.findings == [], f"after the repair: {report.after.findings[:3]}")
        if report.before.is_clean:
            _require(device.counts.writes == 0, "it writes to a clean store")
            return "harmless"
        return await self._require_mended(case, device, report, hit)

    def _require_named(
        self, case: Case, found: Seen | None, before: Report, hit: list[FramePlace]
    ) -> None:
        paths = set(self.ground.tree)
        if found is None:
            _require(not before.is_clean, "it cannot be opened, and fsck says nothing")
            if case.how in ("lost", "cut"):
                return  # what would name the files may be lost as well
        else:
            log_is_damaged = any(each.invariant == "E5" for each in before.findings)
            self._require_right(found, self.ground.older if log_is_damaged else {})
            _require(not hit or not before.is_clean, f"fsck does not find damage of {hit}")
            paths = (paths - found.tree.keys()) | found.unreadable
            if log_is_damaged:
                paths |= {
                    path
                    for path, data in self.ground.older.items()
                    if path in found.tree and found.tree[path] == data
                }
        findings = " ".join(map(str, before.findings)).replace(",", " ").replace(":", " ") + " "
        unnamed = [
            path
            for path in paths
            if path and not any(f"/{name} " in findings for name in _names_of(path))
        ]
        _require(not unnamed, f"fsck does not name {unnamed}: {findings}")

    def _require_right(self, found: Seen, older: Tree) -> None:
        """No wrong byte."""
        wrong = [
            path
            for path, data in found.tree.items()
            if data != self.ground.tree.get(path)
            and not path.startswith("lost+found")
            and (path not in older or data != older[path])
            and not self._is_former_name(path, found)
        ]
        _require(not wrong, f"wrong bytes: {wrong}")

    def _is_former_name(self, path: str, found: Seen) -> bool:
        """A file that is there, whole, under the name that it had before."""
        return any(
            path == former and now not in found.tree and found.tree[path] == self.ground.tree[now]
            for now, former in FORMER_NAMES.items()
        )

    async def _require_mended(
        self, case: Case, device: ImageDevice, report: RepairReport, hit: list[FramePlace]
    ) -> str:
        again = await look(device)
        if again is None:
            raise Failure("it cannot be opened after the repair")
        self._require_right(again, {})
        paths = [each.path for each in report.lost]
        paths += [each.path for each in report.actions if "lost" in each.what]
        lost = {(path or "").lstrip("/") for path in paths}
        unsaid = [path for path in again.unreadable if lost.isdisjoint(LINKS.get(path, (path,)))]
        _require(not unsaid, f"lost without a word: {unsaid}")
        missing = self.ground.tree.keys() - again.tree.keys() - again.unreadable
        if len(hit) > 1:  # their names may be lost, and what repeats them: then they are elsewhere
            elsewhere = [data for path, data in again.tree.items() if path not in self.ground.tree]
            missing = {path for path in missing if self.ground.tree[path] not in elsewhere}
        _require(not missing or case.how in ("lost", "cut"), f"missing: {missing}")
        return "with loss" if again.unreadable or missing else "mended"


def _names_of(path: str) -> list[str]:
    """What fsck may call a file."""
    names = LINKS.get(path, (path,))
    return [*names, FORMER_NAMES[path]] if path in FORMER_NAMES else [*names]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Failure(what)


# --- damage -------------------------------------------------------------------------------------


def _strike(
    image: bytearray, aim: Field, how: str, source: random.Random, others: list[bytes]
) -> None:
    if how == "bit":
        flip_bit(image, aim.start, aim.length, source)
    elif how == "value":
        at, length = aim.start, aim.length
        if length > 64:
            at, length = at + source.randrange(length - 8), 8
            others = []
        was = bytes(image[at : at + length])
        image[at : at + length] = source.choice(list(_values(was, source, others)))
    elif how == "zeroed":
        zero_sector(image, aim.start, aim.length, source)
    elif how == "swapped":
        swap_sectors(image, aim.start, aim.length, source)
    elif how == "lost":
        at = aim.start // EXTENT_BYTES * EXTENT_BYTES
        fill = source.choice((bytes(EXTENT_BYTES), source.randbytes(EXTENT_BYTES)))
        image[at : at + EXTENT_BYTES] = fill
    else:
        assert how == "cut"
        keep = source.randrange(EXTENT_BYTES * 4, len(image)) // 4096 * 4096
        del image[keep:]


def _values(was: bytes, source: random.Random, others: list[bytes]) -> Iterator[bytes]:
    """Other values for a field: limits, neighbours, chance, what it is elsewhere."""
    number, size = int.from_bytes(was, "little"), len(was)
    bits = 8 * size
    for each in (0, -1, number + 1, number - 1, 1 << bits - 1, number << 1, number >> 1):
        yield (each % (1 << bits)).to_bytes(size, "little")
    yield source.randbytes(size)
    yield source.choice(others) if others else source.randbytes(size)


# --- looking ------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a reader gets: content by path, and the paths of what cannot be read."""

    tree: Tree
    unreadable: set[str]


async def look(device: ImageDevice) -> Seen | None:
    """Read everything; None if the store cannot be opened."""
    try:
        async with Store.open(device, options=LOOKING) as store:
            return Seen(*await read_tree(store))
    except ShardfsError:
        return None
