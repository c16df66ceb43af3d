"""The world of extents: which sequences are tried on the engine below its tree.

Role: the alphabet and the generator. Sizes lie around sectors, blocks, the largest chunk and the
end of the extent; few slots are used again and again; each sequence prefers some operations.

Not here: what is checked (extents_system.py, extents_lives.py), what extents are
(models/extents_model.py).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from shardfs import limits
from shardfs.checking.conformance.case import Coverage, Operation, Operations
from shardfs.checking.conformance.extents_lives import Action, ExtentsLives
from shardfs.checking.conformance.extents_system import SLOTS, STREAMS, key_of
from shardfs.checking.conformance.store_devices import GEOMETRIES, Settings, formatted
from shardfs.checking.schedule import Control, Program
from shardfs.engine.framing import head_bytes
from shardfs.engine.layout import Stream

DEVICE = "device"
CRASHES = ("lose", "keep", "kill", "scatter", "tear")
_SIZES = (1, 512, limits.BLOCK_BYTES, 16 * limits.KIB)
_ROOM = len(_SIZES)
"""The size that fills the open extent up."""
_STEPS_MIN, _STEPS_MAX = 10, 40
_FAULT_PROBABILITY = 0.15
_LEFT_OUT_PROBABILITY = 0.15
_WEIGHTS = {
    "append": 10,
    "read": 4,
    "read-all": 0.5,
    "drop": 3,
    "drop-all": 0.3,
    "scrap": 4,
    "chain": 2,
    "cut-tails": 1,
    "write-out": 1,
    "flush": 1,
    "commit": 2.5,
    "record": 1,
    "seal": 2,
    "free": 4,
    "read-reset": 2,
}
_RESETS = (
    ("seal", "flush", "free"),
    ("drop", "drop", "seal", "commit", "free", "append"),
    ("read-all", "drop-all", "seal", "commit", "free", "append", "append", "read-all"),
)
"""What makes an extent free, in a row; by chance alone it is rare."""
_RESETS_MAX = 2
_ENDINGS = {"reboot": 1, "crash": 2, "cut": 3}
_ENDINGS_COUNTS = {0: 1, 1: 6, 2: 2}
_FAULTS = (
    "fail-read",
    "fail-write",
    "fail-flush",
    "fail-reset",
    "flip-read",
    "vanish",
    "lose-write",
    "rot",
)

Step = Callable[..., Awaitable[None]]


# --- what operations do -----------------------------------------------------------------------


def _size(system: ExtentsLives, corner: int, off: int, stream: Stream, key: bytes) -> int:
    chunks = system.parts.chunks
    corner %= _ROOM + 1
    if corner == _ROOM:
        size = system.parts.extents.room(stream) - head_bytes(len(key), 1)
    else:
        size = _SIZES[corner]
    return min(max(1, size + off % 3 - 1), chunks.payload_bytes_max)


async def _append(system: ExtentsLives, slot: int, corner: int, off: int) -> None:
    slot %= SLOTS
    key = key_of(slot)
    size = _size(system, corner, off, Stream.DATA, key)
    system.refer(slot, system.append(size, Stream.DATA, key))


async def _read(system: ExtentsLives, slot: int, start: int, cached: int) -> None:
    position = system.references.get(slot % SLOTS)
    if position is not None:
        await system.read(position, start, position.length, cached=cached % 2 == 1)


async def _read_all(system: ExtentsLives) -> None:
    for position in list(system.references.values()):
        await system.read(position, 0, position.length, cached=True)


async def _drop_all(system: ExtentsLives) -> None:
    for slot in list(system.references):
        await _drop(system, slot)


async def _drop(system: ExtentsLives, slot: int) -> None:
    system.parts.health.require_writable()
    if slot % SLOTS in system.references:
        system.refer(slot % SLOTS, None)


async def _scrap(system: ExtentsLives, which: int, corner: int, off: int) -> None:
    stream = STREAMS[which % len(STREAMS)]
    system.append(_size(system, corner, off, stream, b""), stream, b"")


async def _chain(system: ExtentsLives, which: int, corner: int, off: int) -> None:
    stream = STREAMS[which % len(STREAMS)]
    last = next(reversed(system.chunks.values()), None)
    system.append(_size(system, corner, off, stream, b"chained"), stream, b"chained", last)


async def _cut_tails(system: ExtentsLives) -> None:
    system.parts.extents.cut_all()


async def _write_out(system: ExtentsLives) -> None:
    system.parts.extents.cut_all()
    await system.parts.scheduler.write_out()


async def _flush(system: ExtentsLives) -> None:
    await _write_out(system)
    await system.parts.scheduler.flush()


async def _commit(system: ExtentsLives) -> None:
    await system.commit()


async def _record(system: ExtentsLives) -> None:
    system.parts.health.require_writable()
    await system.write_record()


async def _seal(system: ExtentsLives, which: int) -> None:
    system.parts.health.require_writable()
    extents = system.parts.extents
    extent = extents._current.get(STREAMS[which % len(STREAMS)])
    if extent is not None:
        extents.seal(extent)


async def _free(system: ExtentsLives) -> None:
    system.parts.health.require_writable()
    await system.free()


async def _read_reset(system: ExtentsLives, which: int) -> None:
    model = system.model
    gone = [each for each in system.chunks if each.epoch < model.epoch(each.extent)]
    if gone:
        await system.read(gone[which % len(gone)], 0, 1, cached=False)


async def _reboot(system: ExtentsLives) -> None:
    system.end("clean")


async def _crash(system: ExtentsLives, kind: int) -> None:
    system.end(CRASHES[kind % len(CRASHES)])


async def _cut(system: ExtentsLives, after: int, kind: int) -> None:
    system.plan_cut(1 + after % 40, CRASHES[kind % len(CRASHES)])


async def _fail(kind: str, system: ExtentsLives, skip: int) -> None:
    system.device.fail(kind, skip=skip % (4 if kind == "read" else 20))


async def _flip_read(system: ExtentsLives, skip: int) -> None:
    system.device.faults.flip_read(skip=skip % 8)


async def _vanish(system: ExtentsLives, skip: int) -> None:
    system.device.faults.vanish(skip % 20)


async def _lose_write(system: ExtentsLives, skip: int) -> None:
    system.device.faults.lose_write(skip=skip % 8)


async def _rot(system: ExtentsLives, which: int) -> None:
    places = list(system.references.values())
    if places:
        at = places[which % len(places)]
        system.device.rot(at.extent * system.model.extent_bytes + at.offset + 64 % at.length)


_STEPS: Mapping[str, tuple[Step, int]] = {
    "append": (_append, 3),
    "read": (_read, 3),
    "read-all": (_read_all, 0),
    "drop": (_drop, 1),
    "drop-all": (_drop_all, 0),
    "scrap": (_scrap, 3),
    "chain": (_chain, 3),
    "cut-tails": (_cut_tails, 0),
    "write-out": (_write_out, 0),
    "flush": (_flush, 0),
    "commit": (_commit, 0),
    "record": (_record, 0),
    "seal": (_seal, 1),
    "free": (_free, 0),
    "read-reset": (_read_reset, 1),
    "reboot": (_reboot, 0),
    "crash": (_crash, 1),
    "cut": (_cut, 2),
    "fail-read": (partial(_fail, "read"), 1),
    "fail-write": (partial(_fail, "write"), 1),
    "fail-flush": (partial(_fail, "flush"), 1),
    "fail-reset": (partial(_fail, "reset"), 1),
    "flip-read": (_flip_read, 1),
    "vanish": (_vanish, 1),
    "lose-write": (_lose_write, 1),
    "rot": (_rot, 1),
}
"""What each operation does, and how many numbers it takes."""


def _action(operation: Operation) -> Action:
    step, count = _STEPS[operation.name]
    numbers = (*operation.arguments, *(0,) * count)[:count]

    async def act(system: ExtentsLives) -> None:
        system.coverage.counts[f"operation {operation.name}"] += 1
        await step(system, *numbers)

    return act


# --- which sequences --------------------------------------------------------------------------


class ExtentWorld:
    """Sequences on extents, chunks and the superblock."""

    name = "extents"
    alphabet: Sequence[str] = (DEVICE, *_STEPS)

    def generate(self, rng: random.Random) -> Operations:
        """See World.generate."""
        weights = {
            name: weight * rng.choice((0.3, 1, 1, 3))
            for name, weight in _WEIGHTS.items()
            if name == "append" or rng.random() >= _LEFT_OUT_PROBABILITY
        }
        count = rng.randint(_STEPS_MIN, _STEPS_MAX)
        names = rng.choices(list(weights), list(weights.values()), k=count)
        for _ in range(rng.randint(0, _RESETS_MAX)):
            at = rng.randrange(len(names))
            names[at:at] = rng.choice(_RESETS)
        for _ in range(rng.choices(list(_ENDINGS_COUNTS), list(_ENDINGS_COUNTS.values()))[0]):
            ending = rng.choices(list(_ENDINGS), list(_ENDINGS.values()))[0]
            names.insert(rng.randint(len(names) // 4, len(names)), ending)
        if rng.random() < _FAULT_PROBABILITY:
            names.insert(rng.randrange(len(names)), rng.choice(_FAULTS))
        first = (
            rng.randrange(len(GEOMETRIES)),
            rng.choice((0, 0, 1, 2, 5)),
            rng.choice((0, 2, 3, 4)),
        )
        steps = (Operation(name, _numbers(name, rng)) for name in names)
        return (Operation(DEVICE, first), *steps)

    def program(self, operations: Operations, coverage: Coverage) -> Program[None]:
        """See World.program."""
        settings, free_max = Settings(), None
        if operations and operations[0].name == DEVICE:
            geometry, latency, free = (*operations[0].arguments, 0, 0, 0)[:3]
            free_max = None if free % 8 == 0 else free % 8
            settings = Settings(GEOMETRIES[geometry % len(GEOMETRIES)], 1 + latency % 8)
        formatted(settings.geometry)
        actions = [_action(each) for each in operations if each.name != DEVICE]

        async def program(control: Control) -> None:
            await ExtentsLives(control, coverage, settings, free_max).run(iter(actions))

        return program


def _numbers(name: str, rng: random.Random) -> tuple[int, ...]:
    match name:
        case "append" | "scrap" | "chain":
            first = rng.randrange(SLOTS if name == "append" else len(STREAMS))
            return (first, rng.randrange(_ROOM + 1), rng.randrange(3))
        case "read":
            return (rng.randrange(SLOTS), rng.choice((0, 0, 1, 511, 4095)), rng.randrange(2))
        case "seal":
            return (rng.choice((0, 0, 1, 2)),)
        case "cut":
            return (rng.randrange(rng.choice((4, 40))), rng.randrange(len(CRASHES)))
        case "crash":
            return (rng.randrange(len(CRASHES)),)
        case _:
            return tuple(rng.randrange(8) for _ in range(_STEPS[name][1]))
