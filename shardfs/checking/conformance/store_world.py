"""The world of stores: which sequences of operations are tried on engine and model.

Role: the generator. Sequences are made so that they run into each other's traces: few keys, used
again; sizes at the limits of sectors, blocks, granules, frames and extents; and each sequence
prefers some operations and leaves others out (swarm testing), so that rare ones come in crowds.

Not here: what operations do (store_operations.py), what is checked (store_system.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from shardfs import limits
from shardfs.checking.conformance.case import Coverage, Operation, Operations
from shardfs.checking.conformance.sizes import fresh_stores
from shardfs.checking.conformance.small_limits import OF_TREES, SMALL_TREE_PROBABILITY, in_force
from shardfs.checking.conformance.store_devices import (
    EXTENT_BYTES,
    GEOMETRIES,
    Settings,
    formatted,
)
from shardfs.checking.conformance.store_operations import (
    ALPHABET,
    CRASHES,
    action_of,
)
from shardfs.checking.conformance.store_system import KEYS, StoreSystem
from shardfs.checking.schedule import Control, Program

DEVICE = "device"
"""The operation that a sequence begins with: geometry, latency, background, limits of the tree."""

_STEPS_MIN, _STEPS_MAX = 10, 46
_CORNERS = (
    0,
    limits.INLINE_VALUE_BYTES_MAX,
    512,
    limits.BLOCK_BYTES,
    EXTENT_BYTES // limits.CHUNKS_PER_EXTENT_MIN,
    limits.GRANULE_BYTES,
    limits.WHOLE_PAYLOAD_BYTES_MAX,
    EXTENT_BYTES,
)
_FRAME_BYTES = 48
_WEIGHTS = {
    "get": 4,
    "put": 8,
    "delete": 3,
    "overwrite": 5,
    "part": 2,
    "scan": 0.4,
    "scan-part": 1,
    "batch": 3,
    "patch": 2,
    "sync": 2,
    "sync-one": 1,
    "write-out": 0.7,
    "flush": 0.7,
    "commit": 1,
    "checkpoint": 1.2,
    "compact": 1,
    "reclaim": 1.5,
    "reclaim-dead": 0.5,
    "tidy": 0.4,
    "empty-extent": 0.3,
    "reserve": 0.3,
    "thin": 0.3,
    "mirror": 0.2,
    "scatter": 0.4,
    "gather": 0.5,
    "wait": 0.5,
    "trim": 0.1,
    "stop-shrink": 0.02,
    "empty": 0.02,
}
_ENDINGS = {"reboot": 2, "crash": 4, "cut": 4, "crash-twice": 1}
_ON_THIN_EXTENTS = (
    *(("reclaim",), ("reclaim", "reclaim"), ("tidy",), ("overwrite", "reclaim")),
    *(("cut", "reclaim", "reclaim"), ("fail-read", "reclaim"), ("rot", "reclaim", "reclaim")),
)
_ON_RESIZING = (
    *(("grow",), ("shrink",), ("shrink", "thin", "shrink"), ("shrink", "trim", "grow")),
    *(("shrink", "crash"), ("grow", "put", "crash"), ("shrink", "grow", "put", "crash")),
    *(("cut-resize", "grow"), ("cut-resize", "shrink"), ("cut-resize", "shrink")),
    *(("fail-write", "shrink"), ("fail-flush", "grow"), ("fail-read", "shrink")),
)
_FAULTS = ALPHABET[ALPHABET.index("fail-read") :]
_ENDINGS_WEIGHTS = {0: 2.5, 1: 6, 2: 1, 3: 0.3}
_FAULT_PROBABILITY = 0.2
_LEFT_OUT_PROBABILITY = 0.2
_FULL_PROBABILITY = 0.05
_CHURN_PROBABILITY = 0.008
_GATHER_PROBABILITY = 0.8
_CUT_AGAIN_PROBABILITY = 0.3
_EMPTY_PROBABILITY = 0.7
_SPREAD_PROBABILITY = 0.2
_BACKGROUND_PROBABILITY = 0.3
_KEY_AGAIN_PROBABILITY = 0.8
_RESIZE_PROBABILITY = 0.12
_LAYERS_PROBABILITY = 0.5


class StoreWorld:
    """Sequences on an open store."""

    name = "store"
    alphabet: Sequence[str] = (DEVICE, *ALPHABET)

    def generate(self, rng: random.Random) -> Operations:
        """See World.generate."""
        generator = _Generator(rng)
        background = rng.random() < _BACKGROUND_PROBABILITY
        first = (
            rng.randrange(len(GEOMETRIES)),
            rng.choice((0, 0, 0, 0, 1, 3)),
            int(background),
            rng.randrange(2),
        )
        steps = generator.steps()
        small_tree = rng.random() < SMALL_TREE_PROBABILITY
        if small_tree and rng.random() < _LAYERS_PROBABILITY:
            pattern = rng.getrandbits(40)
            steps.insert(
                rng.randrange(len(steps)), Operation("layers", (rng.randrange(32), pattern))
            )
        return (Operation(DEVICE, (*first, int(small_tree))), *steps)

    def program(self, operations: Operations, coverage: Coverage) -> Program[None]:
        """See World.program."""
        settings, small_tree = Settings(), 0
        if operations and operations[0].name == DEVICE:
            arguments = (*operations[0].arguments, 0, 0, 0, 0, 0)[:5]
            number, latency, background, is_image, small_tree = arguments
            geometry = GEOMETRIES[number % len(GEOMETRIES)]
            settings = Settings(
                geometry,
                1 + latency % 8,
                bool(background),
                bool(is_image) and not geometry.zoned,
            )
        formatted(settings.geometry)
        fresh = fresh_stores(EXTENT_BYTES)
        actions = [action_of(each) for each in operations if each.name != DEVICE]

        async def program(control: Control) -> None:
            with in_force(OF_TREES, wanted=bool(small_tree)):
                await StoreSystem(control, coverage, settings, fresh).run(iter(actions))

        return program


class _Generator:
    """Makes one sequence.

    Args:
        rng: decides.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: list[int] = []

    def steps(self) -> list[Operation]:
        """The sequence, without what sets the device up."""
        rng = self._rng
        weights = {
            name: weight * rng.choice((0.3, 1, 1, 3))
            for name, weight in _WEIGHTS.items()
            if name == "put" or rng.random() >= _LEFT_OUT_PROBABILITY
        }
        count = rng.randint(_STEPS_MIN, _STEPS_MAX)
        names = rng.choices(list(weights), list(weights.values()), k=count)
        endings = rng.choices(list(_ENDINGS_WEIGHTS), list(_ENDINGS_WEIGHTS.values()))[0]
        for _ in range(endings):
            ending = rng.choices(list(_ENDINGS), list(_ENDINGS.values()))[0]
            names.insert(rng.randint(len(names) // 4, len(names)), ending)
        if rng.random() < _FAULT_PROBABILITY:
            for _ in range(rng.choice((1, 1, 2))):
                names.insert(rng.randrange(len(names)), rng.choice(_FAULTS))
        if rng.random() < _FULL_PROBABILITY:
            at = rng.randrange(len(names) // 2)
            names.insert(at, "fill")
            if rng.random() < _EMPTY_PROBABILITY:
                names.insert(rng.randrange(at + 1, len(names)), "empty")
        if rng.random() < _SPREAD_PROBABILITY:
            self._spread(names)
        if "scatter" in names and rng.random() < _GATHER_PROBABILITY:
            names.insert(rng.randint(names.index("scatter") + 1, len(names)), "gather")
        if rng.random() < _CHURN_PROBABILITY:
            names.insert(rng.randrange(len(names)), "churn")
        operations = [Operation(name, self._arguments(name)) for name in names]
        if rng.random() < _RESIZE_PROBABILITY:
            at = rng.randrange(len(operations))
            operations[at:at] = self._resizing()
        return operations

    def _spread(self, names: list[str]) -> None:
        """Extents that are live in part, and what may happen to them."""
        rng = self._rng
        at = rng.randrange(len(names))
        names.insert(at, "spread")
        for some in (("thin",), *rng.choices(_ON_THIN_EXTENTS, k=rng.randint(1, 4))):
            at = min(at + rng.randint(1, 3), len(names))
            names[at:at] = some

    def _resizing(self) -> list[Operation]:
        """The store becomes larger or smaller, with something in its last extents or without; and
        what may happen meanwhile, and afterwards."""
        rng = self._rng
        names: list[str] = []
        if rng.random() < 0.3:
            names.append("grow")
        operations = [Operation(name, self._arguments(name)) for name in names]
        if rng.random() < 0.5:
            # As much as the device takes; then less.
            operations.append(Operation("spread", (80, rng.choice((9, 16)))))
            names = rng.choices(("thin", "checkpoint", "sync", "tidy", "compact"), k=2)
            operations += [Operation(name, self._arguments(name)) for name in ("thin", *names)]
        for some in rng.choices(_ON_RESIZING, k=rng.randint(1, 3)):
            operations += [Operation(name, self._arguments(name)) for name in some]
        return operations

    def _arguments(self, name: str) -> tuple[int, ...]:
        rng = self._rng
        match name:
            case "get" | "delete":
                return (self._key(),)
            case "put":
                return (self._key(), self._size())
            case "overwrite":
                return (rng.randrange(8), self._size())
            case "part":
                return (self._key(), self._size(), self._size())
            case "scan-part":
                return (rng.randrange(len(KEYS)), rng.randrange(len(KEYS)))
            case "batch":
                return (rng.randrange(6), rng.randrange(5), rng.randrange(4), self._size())
            case "patch":
                return (rng.randrange(6), self._size(), self._size())
            case "scatter":
                return (rng.randrange(6), rng.randrange(10, 40), self._size())
            case "fill":
                return (rng.choice((20, 40, 60, 90)),)
            case "spread":
                return (rng.choice((12, 20, 40, 70)), rng.choice((1, 2, 4, 5, 9, 16)))
            case "mirror":
                return (self._key(), rng.randrange(2, 16), rng.randrange(32))
            case "thin":
                return (rng.randrange(4), rng.choice((2, 3, 4, 6)))
            case "empty-extent":
                return (rng.randrange(4),)
            case "reserve":
                return (rng.choice((1, 5000, 100_000, 600_000, 2_000_000)),)
            case "sync-one":
                return (rng.randrange(4),)
            case "wait":
                return (rng.randrange(1, 30),)
            case "crash":
                return (rng.randrange(len(CRASHES)),)
            case "cut" | "crash-twice":
                at, kind = rng.randrange(rng.choice((4, 12))), rng.randrange(len(CRASHES))
                second = rng.randrange(len(CRASHES))
                if name == "cut":
                    if rng.random() >= _CUT_AGAIN_PROBABILITY:
                        return at, kind, 0, 0
                    # A killed process leaves unflushed what recovery then relies on.
                    first = rng.choice((kind, CRASHES.index("kill")))
                    return at, first, rng.choice((1, 1, 2, 3, 5)), second
                return kind, at, rng.choice((kind, second))
            case "churn":
                return rng.randrange(4, 48), rng.choice((0, 1, 1, 2)), rng.choice((0, 0, 4))
            case "rot":
                return (
                    rng.choice((self._key(), len(KEYS) + rng.randrange(40))),
                    rng.randrange(EXTENT_BYTES),
                )
            case "rot-anywhere":
                # What is written first lies in front; half of what rots is not in use.
                return (
                    rng.randrange(rng.choice((8, 32))),
                    rng.randrange(rng.choice((4096, EXTENT_BYTES))),
                )
            case "misdirect-write":
                return (rng.randrange(32 * EXTENT_BYTES // limits.BLOCK_BYTES), rng.randrange(8))
            case "vanish":
                return (rng.randrange(12), rng.choice((0, 1, 3, 10)))
            case "fail-region":
                return (rng.randrange(32),)
            case _ if name in _FAULTS:
                return (rng.randrange(rng.choice((1, 3, 8))),)
            case _:
                return self._arguments_of_resizing(name)

    def _arguments_of_resizing(self, name: str) -> tuple[int, ...]:
        rng = self._rng
        match name:
            case "cut-resize":
                return rng.choice((0, 0, 1, 1, 2, 3, 5)), rng.randrange(len(CRASHES))
            case "grow":
                return (rng.randrange(3),)
            case "shrink":
                return rng.randrange(6), rng.choice((0, 0, 1, 2, 4))
            case _:
                return ()

    def _key(self) -> int:
        rng = self._rng
        if self._used and rng.random() < _KEY_AGAIN_PROBABILITY:
            return rng.choice(self._used)
        self._used.append(rng.randrange(len(KEYS)))
        return self._used[-1]

    def _size(self) -> int:
        rng = self._rng
        if rng.random() < 0.4:
            return rng.randrange(2 * limits.INLINE_VALUE_BYTES_MAX)
        corner = rng.choice(_CORNERS) * rng.choice((1, 1, 1, 2))
        return max(0, corner + rng.choice((-1, 0, 1, -_FRAME_BYTES, rng.randrange(-200, 200))))
