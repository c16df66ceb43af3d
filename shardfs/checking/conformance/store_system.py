"""A store on a simulated device beside its model, through lives that end in closes and crashes.

Role: a StoreSystem owns the device, the model and what is known of planned faults. A life is one
open store: operations act on it until one of them, or a planned cut, ends it; then the device of
the next life is what the ending leaves.

What is checked, beside the answers of operations (store_operations.py):
    C1.  A store opens by itself, healthy, as long as nothing destroyed bytes.
    C2.  What it holds then is allowed by the model (key_value_model.I1 to I5).
    C3.  The account of live bytes agrees with the content; where a draw says so, fsck is clean.
    C4.  A clean close makes everything persistent: every promise ever handed out is kept.
    C5.  Errors come only where a fault was planned, NoSpaceError only when much was written.

Not here: the operations, and which sequences are tried (store_world.py).
"""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import xxhash

from shardfs import limits
from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.store_checks import (
    check_account,
    check_clean,
    read_content,
    read_entries,
)
from shardfs.checking.models.key_value_model import KeyValueModel, State, brief, difference
from shardfs.checking.power_cuts import Operation as DeviceOperation
from shardfs.checking.power_cuts import PowerCutPoint
from shardfs.checking.schedule import Control, Replay, run_once
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store, StoreOptions
from shardfs.errors import (
    CorruptionError,
    DeviceError,
    NoSpaceError,
    ReadOnlyError,
    ShardfsError,
)

EXTENT_BYTES = 64 * limits.KIB
SEEDS = 1 << 30
FSCK_EVERY = 4
_COMMIT_INTERVAL_S = 0.5
_CHANGING = frozenset({"write", "flush", "reset", "discard"})
_SPACE_FRACTION = 0.25
"""Of the device, given and written to it so far: with less, there is no reason for NoSpaceError."""
_POOL_BYTES = 64 * limits.KIB
_POOL_STEP = 61
_POOL = random.Random(0x5EED).randbytes(_POOL_BYTES + 256 * limits.KIB)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What kind of device."""

    sector_bytes: int
    zoned: bool
    extent_count: int


GEOMETRIES = tuple(
    Geometry(sector_bytes, zoned, extent_count)
    for zoned in (False, True)
    for sector_bytes in limits.SECTOR_BYTES_ALLOWED
    for extent_count in (32, limits.EXTENT_COUNT_MIN)
)


@functools.cache
def formatted(geometry: Geometry) -> SimulatedDevice:
    """A device with an empty store, to be copied. Requires: no trio run is going on."""
    size_bytes = geometry.extent_count * EXTENT_BYTES
    identity = plan(
        size_bytes,
        geometry.sector_bytes,
        extent_bytes=EXTENT_BYTES,
        store_uuid=uuid.UUID(int=0x5EED),
    )
    zoned_bytes = EXTENT_BYTES if geometry.zoned else None
    device = SimulatedDevice(size_bytes, geometry.sector_bytes, zoned_bytes)

    async def program(_: Control) -> None:
        await format_device(device, replace(identity, created_ns=0))

    run = run_once(program, Replay(()))
    assert run.finding is None, f"{run.finding}"
    return device


@dataclass(frozen=True, slots=True)
class Ending:
    """How a life ends.

    Args:
        kind: a word for coverage: "clean", "kill", "lose", "keep", "scatter" or "tear".
        point: of the crash; None for a clean close.
        model: as of then.
        recovery_cut: power fails again at this device operation of the next open; 0: it does not.
    """

    kind: str
    point: PowerCutPoint | None
    model: KeyValueModel
    recovery_cut: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """How the stores of one case are opened.

    Args:
        geometry: of the device.
        checkpoints_max: a device call takes up to this many checkpoints.
        background: the store's own tasks run; else every step is an operation's.
    """

    geometry: Geometry = GEOMETRIES[0]
    checkpoints_max: int = 1
    background: bool = False


Action = Callable[["StoreSystem"], Awaitable[None]]


class StoreSystem:
    """The system and its model, from an empty store to the end of a sequence."""

    store: Store

    def __init__(self, control: Control, coverage: Coverage, settings: Settings) -> None:
        self.control = control
        self.coverage = coverage
        self.settings = settings
        self.model = KeyValueModel()
        self.device = formatted(settings.geometry).power_cut()
        self.faults: set[str] = set()
        self.bytes_were_lost = False
        self.ending: Ending | None = None
        self._cut_after = 0
        self._cut_kind = ""
        self._cut: Ending | None = None
        self._written_before = 0
        self._values = 0
        self._value_bytes = 0

    async def run(self, actions: Iterator[Action]) -> None:
        """All actions, in as many lives as they end."""
        while await self._live(actions):
            pass

    # --- for operations ---------------------------------------------------------------------

    def value(self, size: int) -> bytes:
        """Bytes that no other value has, at no place."""
        self._values += 1
        self._value_bytes += size
        start = self._values * _POOL_STEP % _POOL_BYTES
        return (b"%d:" % self._values + _POOL[start : start + size])[:size]

    def plan_cut(self, device_operations: int, kind: str) -> None:
        """The power fails when so many more operations have been submitted to the device."""
        if not self._cut_after and self._cut is None:
            self._cut_after = device_operations
            self._cut_kind = kind
            self.device.observer = self._observe

    def end(self, kind: str, *, recovery_cut: int = 0) -> None:
        """This life ends, now."""
        crashed = kind != "clean"
        point = self.device.power_cut_point() if crashed else None
        model = self.model.snapshot() if crashed else self.model
        self.ending = Ending(kind, point, model, recovery_cut)

    def plan_fault(self, kind: str, name: str) -> None:
        """Errors of requests of this kind are legal for the rest of this life."""
        self.faults.add(kind)
        self.coverage.counts[f"fault {name}"] += 1

    def expect(self, key: bytes, found: bytes | None) -> None:
        """A read has given this."""
        expected = self.model.get(key)
        if found != expected and not (self.bytes_were_lost and self.model.was_written(key, found)):
            raise AssertionError(f"{key!r} is {brief(found)}, not {brief(expected)}")

    # --- one life ---------------------------------------------------------------------------

    async def _live(self, actions: Iterator[Action]) -> bool:
        """From an open to what ends it. False: no actions are left."""
        self.ending = None
        self.device.reseed(self.control.draw(SEEDS), self.settings.checkpoints_max)
        options = StoreOptions(
            background=self.settings.background, commit_interval_s=_COMMIT_INTERVAL_S
        )
        opened = False
        try:
            async with Store.open(self.device, options=options) as self.store:
                opened = True
                await self._check_opened()
                await self._act_until_the_end(actions)
                if self._ends_by_crash():
                    # Nothing that happens from here on has happened.
                    self.store.health.make_read_only("the power is gone", expected=True)
        except ShardfsError as error:
            if opened:
                raise
            self._require_planned(error)
            if self.bytes_were_lost:
                return False
            self.end("kill")
        if self._cut is None and self.ending is None:
            return False
        self._begin_anew()
        return True

    async def _act_until_the_end(self, actions: Iterator[Action]) -> None:
        while not self._ends():
            action = next(actions, None)
            if action is None:
                await self._tolerating(self._check_end())
                return
            await self._tolerating(action(self))
            if not self.settings.background and self.store._committer.is_overdue:
                await self._tolerating(self.store.checkpoint())

    def _ends(self) -> bool:
        return self._cut is not None or self.ending is not None

    def _ends_by_crash(self) -> bool:
        return self._cut is not None or (self.ending is not None and self.ending.point is not None)

    def _observe(self, _: DeviceOperation) -> None:
        self._cut_after -= 1
        if self._cut_after == 0:
            point = self.device.power_cut_point()
            self._cut = Ending(self._cut_kind, point, self.model.snapshot())
            self.device.observer = None

    def _begin_anew(self) -> None:
        """The device and the model of the next life."""
        ending = self._cut or self.ending
        assert ending is not None
        self._cut, self.ending, self._cut_after = None, None, 0
        self.coverage.counts[f"crash {ending.kind}"] += 1
        point = ending.point
        if point is None:
            if not self.store.health.reason:
                unkept = [each for each in self.model.promises if not each.is_persistent()]
                assert not unkept, f"a clean close leaves {len(unkept)} promises unkept"
                self.model.persist()
            else:
                self.model = self.model.snapshot()
            point = self.device.power_cut_point()
        else:
            self.model = ending.model
        self._written_before += self.device.counts.write_bytes
        self.device = self._after(point, ending.kind)
        self.faults.clear()
        if ending.recovery_cut:
            self.plan_cut(ending.recovery_cut, ending.kind)
        if ending.kind != "clean":
            self.coverage.crash_states.add(_content_digest(self.device))

    def _after(self, point: PowerCutPoint, kind: str) -> SimulatedDevice:
        match kind:
            case "kill":
                return self.device.after_kill(point)
            case "keep":
                return self.device.after_power_cut(point, point.everything())
            case "scatter" | "tear":
                rng = random.Random(self.control.draw(SEEDS))
                choice = point.random_choice(rng, torn=kind == "tear")
                return self.device.after_power_cut(point, choice)
            case _:
                return self.device.after_power_cut(point)

    # --- checks -----------------------------------------------------------------------------

    async def _tolerating(self, work: Awaitable[object]) -> None:
        """Some work, which may fail as far as faults allow."""
        try:
            await work
        except NoSpaceError:
            # What is queued has taken its place already.
            written = self._written_before + self.device.counts.write_bytes + self._value_bytes
            if written < self.device.size_bytes * _SPACE_FRACTION:
                raise
            self.coverage.counts["no space"] += 1
        except (DeviceError, ReadOnlyError, CorruptionError) as error:
            self._require_planned(error)

    def _require_planned(self, error: ShardfsError) -> None:
        """Raises the error again, unless a fault explains it."""
        if self.bytes_were_lost:
            return
        if isinstance(error, DeviceError) and error.operation in self.faults:
            return
        if self.faults & _CHANGING and not isinstance(error, NoSpaceError):
            return
        raise error

    async def _check_opened(self) -> None:
        if self.bytes_were_lost:
            await self._take_what_is_left()
            return
        assert not self.store.health.reason, f"the store opened {self.store.health.reason}"
        await self._tolerating(self._compare(crashed=True))

    async def _check_end(self) -> None:
        if not self.faults and not self.bytes_were_lost:
            reason = self.store.health.reason
            assert not reason, f"without a fault, the store is read-only: {reason}"
            await self._compare()
            return
        for key in sorted(self.model.written):
            await self._tolerating(self._compare_key(key))

    async def _compare(self, *, crashed: bool = False) -> None:
        """The whole content and the account."""
        entries = await read_entries(self.store)
        content: State = await read_content(self.store, entries)
        if crashed:
            self.model.crash(content)
        else:
            assert content == self.model.content, difference(content, [self.model.content])
        if not self.settings.background:
            check_account(self.store, entries)
        if crashed and self.control.draw(FSCK_EVERY) == FSCK_EVERY - 1:
            await check_clean(self.store, data=True)

    async def _compare_key(self, key: bytes) -> None:
        self.expect(key, await self.store.get(key))

    async def _take_what_is_left(self) -> None:
        """After bytes were lost: what can be read was written, and the model goes on from it."""
        found: State = {}
        for key in sorted(self.model.written):
            value = self.model.get(key)
            try:
                value = await self.store.get(key)
            except (DeviceError, CorruptionError):
                self.coverage.counts["read of lost bytes"] += 1
            assert self.model.was_written(key, value), f"{key!r} was never {brief(value)}"
            if value is not None:
                found[key] = value
        self.model.restart(found)


def _content_digest(device: SimulatedDevice) -> int:
    return xxhash.xxh3_64_intdigest(device.image())
