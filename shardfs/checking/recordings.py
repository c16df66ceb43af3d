"""Crash states of a real mount: `shardfs check crashes FILE`.

Role: takes moments of a recording (recorded_life.py), builds the states that a power cut at each
may leave, opens every one as a mount would, and looks whether what was promised is there.

What is checked in each state:
    R1  The store opens by itself, healthy, and fsck finds nothing: engine and files.
    R2  The names are those after some prefix of the changes of names: all that an fsync or sync
        had promised, each change wholly or not at all. So a rename is the old state or the new.
    R3  A file whose content was promised, and that was not changed since, has its size and its
        bytes, if it has a name in that state. So has one that a rename put in the place of
        another, if the rename is found.

Invariants:
    I1. The same recording, numbers and seed give the same states.

Not here: what a promise is (fuse/promises.py), which states a cut leaves (power_cuts.py).
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio
import xxhash

from shardfs import limits
from shardfs.checking.power_cuts import Choice
from shardfs.checking.recorded_life import Moment, NameHistory, Names, RecordedLife
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.fsck import check_store
from shardfs.engine.layout import Bytes
from shardfs.engine.options import StoreOptions
from shardfs.engine.recording import RECORDING_MAGIC, RecordingReader
from shardfs.engine.store import Store
from shardfs.errors import FileError, NotShardfsError, ShardfsError, UsageError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.fsck import check_files
from shardfs.fuse.keys import ENTRY_PREFIX, decode_entry_key
from shardfs.fuse.promises import Promised
from shardfs.fuse.records import decode_entry

FINDINGS_MAX: Final = 20
_READ_BYTES: Final = 1 * limits.MIB
_SURVIVORS_SHOWN: Final = 12
_OPTIONS: Final = StoreOptions(background=False)

Progress = Callable[[int, int], None]
"""(states opened, states planned)."""


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What a check of a recording has found.

    states: crash states that were opened.
    points: moments they belong to.
    moments: moments in the recording that are worth a look.
    operations: requests in the recording.
    promises: calls of fsync and sync in the recording that returned.
    findings: one line each; of many, the first.
    notes: what else is to be known.
    """

    states: int
    points: int
    moments: int
    operations: int
    promises: int
    findings: tuple[str, ...]
    finding_count: int
    notes: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Nothing was found."""
        return self.finding_count == 0


def check_crashes(
    path: str,
    *,
    states_per_point: int = 8,
    states_max: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> CrashReport:
    """Open crash states of a recorded mount.

    Args:
        path: of the recording.
        states_per_point: at most so many states of one moment.
        states_max: about so many in all; of a longer recording, moments are taken at random.
        seed: decides which.
        progress: called after each state.

    Raises:
        UsageError: the file cannot be read, or has nothing to check.
        NotShardfsError: it is no recording.
        CorruptionError: the recording is damaged.
    """
    data = _read_file(path)
    if bytes(data[: len(RECORDING_MAGIC)]) != RECORDING_MAGIC:
        raise NotShardfsError(f"{path} is not a recording of shardfs mount --record")
    check = partial(_Check, data, path, states_per_point, states_max, seed, progress)
    return trio.run(_run, check)


async def _run(make: Callable[[], _Check]) -> CrashReport:
    return await make().run()


def _read_file(path: str) -> Bytes:
    try:
        with Path(path).open("rb") as file:
            if not file.seek(0, 2):
                return b""
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the recording {path}: {reason}") from error


class _Check:
    """One check of one recording."""

    def __init__(
        self,
        data: Bytes,
        path: str,
        states_per_point: int,
        states_max: int,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self._reader = RecordingReader(data)
        self._path = path
        self._per_point = states_per_point
        self._states_max = states_max
        self._rng = random.Random(seed)
        self._progress = progress
        header = self._reader.header
        self._origin = SimulatedDevice(header.device_bytes, header.sector_bytes, path=path)
        self._history = NameHistory({})
        self._seen: set[tuple[Choice, int]] = set()
        self._seen_of: tuple[object, object] = (None, None)
        self._states = 0
        self._findings: list[str] = []
        self._finding_count = 0

    async def run(self) -> CrashReport:
        """All of it."""
        counting = RecordedLife(self._reader)
        sizes = []
        first = None
        for moment in counting.moments():
            first = first or moment
            sizes.append(self._per_point if moment.point.unflushed else 1)
        if first is None:
            raise UsageError(
                f"the recording {self._path} ends before the device was in use: nothing to check"
            )
        notes = []
        if self._reader.is_cut_short:
            notes.append("the recording is cut short within its last record; the rest was checked")
        chosen = self._choose(sizes)
        planned = sum(sizes[number] for number in chosen)
        self._history = NameHistory(await self._first_names(first))
        life = RecordedLife(self._reader, self._history)
        for moment in life.moments():
            if moment.number in chosen:
                await self._check_moment(moment, planned)
        return CrashReport(
            self._states,
            len(chosen),
            len(sizes),
            counting.operations,
            counting.promises,
            tuple(self._findings),
            self._finding_count,
            tuple(notes),
        )

    def _choose(self, sizes: list[int]) -> set[int]:
        """Moments to look at: all, or random ones with about states_max states; the last always."""
        last = len(sizes) - 1
        if sum(sizes) <= self._states_max:
            return set(range(len(sizes)))
        chosen = {last}
        states = sizes[last]
        for number in self._rng.sample(range(last), last):
            if states >= self._states_max:
                break
            chosen.add(number)
            states += sizes[number]
        return chosen

    async def _first_names(self, moment: Moment) -> Names:
        device = self._origin.after_power_cut(moment.point)
        async with Store.open(device, options=_OPTIONS) as store:
            return await _read_names(store)

    async def _check_moment(self, moment: Moment, planned: int) -> None:
        for choice in self._choices(moment):
            if self._is_known(moment, choice):
                continue
            device = self._origin.after_power_cut(moment.point, choice)
            device.reseed(0)
            for trouble in await self._trouble(device, moment):
                self._find(moment, choice, trouble)
            self._states += 1
            if self._progress is not None:
                self._progress(self._states, max(planned, self._states))

    def _choices(self, moment: Moment) -> list[Choice]:
        """Nothing, everything, and a sample of what is between."""
        found: dict[Choice, None] = {}
        for _ in range(self._per_point if moment.point.unflushed else 1):
            # Of few writes there are few subsets, but each time others are torn elsewhere.
            found.update(dict.fromkeys(moment.point.choices(2 * self._per_point, self._rng)))
            if len(found) >= self._per_point:
                break
        ends, between = list(found)[:2], list(found)[2:]
        count = max(0, self._per_point - len(ends))
        if len(between) > count:
            between = self._rng.sample(between, count)
        return ends[: self._per_point] + between

    def _is_known(self, moment: Moment, choice: Choice) -> bool:
        """The same state was checked with the same promises already."""
        pages, contents = self._seen_of
        if pages is not moment.point.pages or contents is not moment.contents:
            self._seen_of = (moment.point.pages, moment.contents)
            self._seen = set()
        key = (choice, moment.names_promised)
        if key in self._seen:
            return True
        self._seen.add(key)
        return False

    async def _trouble(self, device: SimulatedDevice, moment: Moment) -> list[str]:
        """What is wrong with a state."""
        try:
            async with Store.open(device, options=_OPTIONS) as store:
                return await self._look(store, moment)
        except Exception as error:  # whatever it is, it is what a mount would meet: R1
            return [f"R1 {type(cause).__name__}: {cause}" for cause in _causes(error)]

    async def _look(self, store: Store, moment: Moment) -> list[str]:
        trouble = []
        if store.health.reason:
            trouble.append(f"R1 the store opened {store.health.state}: {store.health.reason}")
        report = await check_store(store)
        await check_files(store, report)
        trouble += [f"R1 fsck: {finding}" for finding in report.findings[:3]]
        names = await _read_names(store)
        number = self._history.find(names, moment.names_promised, moment.names_changed)
        if number is None:
            difference = self._history.difference(names, moment.names_promised)
            trouble.append(
                f"R2 no state of the names from change {moment.names_promised} to "
                f"{moment.names_changed} was found; against the first of them: {difference}"
            )
        contents = {
            ino: promise
            for ino, promise in moment.contents.items()
            if not promise.is_given or (number is not None and promise.names <= number)
        }
        return trouble + await _broken_contents(store, names, contents)

    def _find(self, moment: Moment, choice: Choice, trouble: str) -> None:
        self._finding_count += 1
        if len(self._findings) < FINDINGS_MAX:
            unflushed = len(moment.point.unflushed)
            shown = ", ".join(
                str(each.step) if each.units is None else f"{each.step} in part {each.units}"
                for each in choice[:_SURVIVORS_SHOWN]
            )
            more = ", ..." if len(choice) > _SURVIVORS_SHOWN else ""
            self._findings.append(
                f"power cut at moment {moment.number} ({moment.what}, request "
                f"{moment.point.step}), {len(choice)} of {unflushed} unflushed writes survive"
                f" [{shown}{more}]: {trouble}"
            )


def _causes(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [cause for inner in error.exceptions for cause in _causes(inner)]
    return [error]


async def _read_names(store: Store) -> Names:
    names = {}
    async for key, record in store.scan(ENTRY_PREFIX, bytes([ENTRY_PREFIX[0] + 1])):
        parent, _, name = decode_entry_key(key)
        assert isinstance(record, bytes), "a directory entry is a record"
        names[parent, name] = decode_entry(record).ino
    return names


async def _broken_contents(
    store: Store, names: Names, contents: Mapping[int, Promised]
) -> list[str]:
    """R3."""
    places = {ino: key for key, ino in names.items() if ino in contents}
    if not places:
        return []
    broken = []
    file_system = await FileSystem.open(store)
    for ino, (parent, name) in sorted(places.items()):
        promise = contents[ino]
        try:
            size, digest = await _measure(file_system, ino)
        except (ShardfsError, FileError) as error:
            broken.append(f"R3 {name!r} in directory {parent} cannot be read: {error}")
            continue
        if (size, digest) != (promise.size, promise.digest):
            broken.append(
                f"R3 {name!r} in directory {parent} (inode {ino}) has {size} bytes, digest "
                f"{digest:016x}; fsync promised {promise.size}, {promise.digest:016x}"
            )
    return broken


async def _measure(file_system: FileSystem, ino: int) -> tuple[int, int]:
    """Size and digest of a file, as promises.PromiseRecorder takes them."""
    size = 0
    digest = xxhash.xxh3_64()
    while data := await file_system.writeback.read(ino, size, _READ_BYTES):
        digest.update(data)
        size += len(data)
    return size, digest.intdigest()
