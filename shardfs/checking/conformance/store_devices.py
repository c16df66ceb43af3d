"""Devices for stores under check: geometries, and what each kind of ending leaves of one.

Role: formatted devices to be copied, and the device that the next life of a store finds.

Not here: what a power cut may leave (power_cuts.py), what must be found there (store_system.py).
"""

from __future__ import annotations

import functools
import random
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from shardfs import limits
from shardfs.checking.models.key_value_model import KeyValueModel
from shardfs.checking.models.size_model import SizeModel
from shardfs.checking.power_cuts import PowerCutPoint
from shardfs.checking.schedule import Control, Replay, run_once
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.errors import CorruptionError, DeviceError, ReadOnlyError, ShardfsError

EXTENT_BYTES = 64 * limits.KIB
SEEDS = 1 << 30
"""Seeds are drawn below this."""

_LOSING = frozenset({"write lost", "write misdirected", "rot"})
_READING = frozenset({"read error once", "read error for ever"})
_PASSING = frozenset({*_READING, "read flipped"})
_CHANGING = frozenset({"write error once", "flush error once"})
_POWER_OFF = frozenset({"flush error once", "flush error for ever", "vanished"})


@dataclass(frozen=True, slots=True)
class Geometry:
    """What kind of device."""

    sector_bytes: int
    zoned: bool
    extent_count: int
    extent_bytes: int = EXTENT_BYTES

    @property
    def size_bytes(self) -> int:
        """Of the device."""
        return self.extent_count * self.extent_bytes


GEOMETRIES = tuple(
    Geometry(sector_bytes, zoned, extent_count)
    for zoned in (False, True)
    for sector_bytes in limits.SECTOR_BYTES_ALLOWED
    for extent_count in (32, limits.EXTENT_COUNT_MIN)
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the stores of one case are opened.

    Args:
        geometry: of the device.
        checkpoints_max: a device call takes up to this many checkpoints.
        background: the store's own tasks run; else every step is an operation's.
        is_image: the device is an image file, which becomes as long as the store.
    """

    geometry: Geometry = GEOMETRIES[0]
    checkpoints_max: int = 1
    background: bool = False
    is_image: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How a life ends.

    Args:
        kind: "clean", "kill" (of the process), or what a power cut leaves of what was unflushed:
            "lose" all of it, "keep" all of it, "scatter": some operations, "tear": one in part.
        point: of the crash; None for a clean close.
        model: as of then.
        size: as of then.
        recovery_cut: power fails again at this device operation of the next open; 0: it does not.
        recovery_kind: how it fails then.
    """

    kind: str
    point: PowerCutPoint | None
    model: KeyValueModel
    size: SizeModel
    recovery_cut: int = 0
    recovery_kind: str = ""


@functools.cache
def formatted(geometry: Geometry) -> SimulatedDevice:
    """A device with an empty store, to be copied. Requires: no trio run is going on."""
    size_bytes = geometry.size_bytes
    identity = plan(
        size_bytes,
        geometry.sector_bytes,
        extent_bytes=geometry.extent_bytes,
        store_uuid=uuid.UUID(int=0x5EED),
    )
    zoned_bytes = geometry.extent_bytes if geometry.zoned else None
    device = SimulatedDevice(size_bytes, geometry.sector_bytes, zoned_bytes)

    async def program(_: Control) -> None:
        await format_device(device, replace(identity, created_ns=0))

    run = run_once(program, Replay(()))
    assert run.finding is None, f"{run.finding}"
    return device


def device_after(
    device: SimulatedDevice, point: PowerCutPoint, kind: str, control: Control
) -> SimulatedDevice:
    """What the next life finds after an ending of this kind (see Ending)."""
    if kind == "kill" and device.faults.struck.keys() & _POWER_OFF:
        # The device forgets what it could not flush even if only the process ends.
        kind = "scatter"
    match kind:
        case "kill":
            return device.after_kill(point)
        case "keep":
            return device.after_power_cut(point, point.everything())
        case "scatter" | "tear":
            rng = random.Random(control.draw(SEEDS))
            return device.after_power_cut(point, point.random_choice(rng, torn=kind == "tear"))
        case _:
            return device.after_power_cut(point)


def loses_bytes(struck: Mapping[str, int]) -> bool:
    """Whether faults that have struck destroyed bytes which were called persistent."""
    return not _LOSING.isdisjoint(struck)


def may_turn_read_only(struck: Mapping[str, int]) -> bool:
    """Whether faults that have struck are a reason for a store to take no more changes."""
    return not struck.keys() <= _READING


def must_turn_read_only(struck: Mapping[str, int]) -> bool:
    """Whether faults that have struck forbid that a store takes more changes."""
    return not _CHANGING.isdisjoint(struck)


def excuses(struck: Counter[str], error: ShardfsError) -> bool:
    """Whether faults that have struck in this life explain an error."""
    if loses_bytes(struck) or not struck.keys() <= _PASSING:
        # Written in vain, or not at all: whoever reads it, writes behind it or waits for it fails.
        return isinstance(error, DeviceError | ReadOnlyError | CorruptionError)
    if "read flipped" in struck and isinstance(error, CorruptionError | ReadOnlyError):
        return True
    return bool(struck) and isinstance(error, DeviceError) and error.operation == "read"
