"""The world of concurrent callers: several clients on one store, under explored schedules.

Role: a sequence of operations says what each of up to four clients does, one thing after the
other; which client goes on at each step is the schedule's choice. Clients also merge, reclaim
and checkpoint, beside the store's own background tasks or instead of them; they are cancelled;
one request of the device may fail; and the power may be cut at any device operation.

What is checked, beside concurrent_clients.P1 to P3 and what the explorer finds by itself
(deadlocks, livelocks, tasks left behind, unexpected errors):
    W1. The history is linearizable: every call took effect at one moment between its beginning
        and its end, batches and lists of all keys too. A list that takes several pages sees
        each key as it was at some moment of the list, and keys that nobody changes once.
    W2. What a power cut leaves is the state behind some prefix of such an order, and the prefix
        holds all that a returned sync covered or a persistent dependency stood for.
    W3. After a close without errors that prefix is everything.
    W4. The account of live bytes fits the content, at the end (unless an error has turned the
        store read-only) and after reopening; in samples, fsck is clean.
    W5. A store without faults is healthy at its end.

Operations (the first number is the client, modulo 4; those that set up have none):
    get k, put k size, delete k, list, sync, settle, extend k size, create mask size,
    remove mask, pause eighths, checkpoint, compact, tidy, reclaim, gather; cancel: the client's
    next operation may be cancelled. Setting up: device shape; background; cache 1 (none);
    latency n; fault kind skip; cut n (at the n-th device operation).

Not here: the operations themselves (concurrent_clients.py), devices (concurrent_devices.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from shardfs.checking.conformance.case import Coverage, Operation, Operations
from shardfs.checking.conformance.concurrent_clients import (
    COMMIT_INTERVAL_S,
    KEYS,
    SIZES,
    Clients,
    Values,
)
from shardfs.checking.conformance.concurrent_devices import SHAPES, Prepared, prepared
from shardfs.checking.conformance.small_limits import OF_TREES, SMALL_TREE_PROBABILITY, in_force
from shardfs.checking.conformance.store_checks import (
    applied_mark,
    check_account,
    check_clean,
)
from shardfs.checking.conformance.store_space import ReclamationWatch
from shardfs.checking.power_cuts import Operation as DeviceOperation
from shardfs.checking.power_cuts import PowerCutPoint
from shardfs.checking.schedule import Control, Program
from shardfs.checking.schedule.linearizability import find_violation
from shardfs.checking.schedule.store_histories import StoreModel, after_a_cut
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, ShardfsError

CLIENTS_MAX: Final = 4
ARGUMENTS: Final = {
    "get": 1,
    "put": 2,
    "delete": 1,
    "list": 0,
    "sync": 0,
    "settle": 0,
    "extend": 2,
    "create": 2,
    "remove": 1,
    "pause": 1,
    "checkpoint": 0,
    "compact": 0,
    "tidy": 0,
    "reclaim": 0,
    "gather": 0,
    "cancel": 0,
}
"""Numbers of each operation of a client, beside the client's own."""
ALPHABET: Final = tuple(ARGUMENTS)
SETTING_UP: Final = ("device", "background", "cache", "latency", "fault", "cut", "small-tree")
FAULT_KINDS: Final = ("read", "write", "flush", "discard", "read", "read")
_SEEDS = 1 << 30
_FSCK_EVERY = 8
_CUT_OPERATIONS_MAX = 40
_FAULT_SKIP_MAX = 24
_LATENCY_MAX = 4
_OPERATIONS_MAX = 36
_WEIGHTS = (0, 1, 1, 2, 4)
_RECLAIMING_PROBABILITY = 0.12


class ConcurrentWorld:
    """Concurrent callers of a whole store. See World."""

    name = "concurrent"
    alphabet: Sequence[str] = (*ALPHABET, *SETTING_UP)

    def __init__(self) -> None:
        for shape in SHAPES:
            prepared(shape)

    def generate(self, rng: random.Random) -> Operations:
        """See World.generate: a swarm, each sequence with weights of its own."""
        operations = [Operation("device", (rng.randrange(len(SHAPES)),))]
        if rng.random() < 0.4:
            operations.append(Operation("background", (1,)))
        if rng.random() < 0.5:
            operations.append(Operation("cache", (1,)))
        operations.append(Operation("latency", (rng.randrange(_LATENCY_MAX),)))
        if rng.random() < 0.2:
            fault = (rng.randrange(len(FAULT_KINDS)), rng.randrange(_FAULT_SKIP_MAX))
            operations.append(Operation("fault", fault))
        if rng.random() < 0.5:
            operations.append(Operation("cut", (rng.randrange(1, _CUT_OPERATIONS_MAX),)))
        clients = rng.randint(2, CLIENTS_MAX)
        weights = [rng.choice(_WEIGHTS) for _ in ALPHABET]
        if rng.random() < 0.3:  # a few kinds of operations again and again, beside each other
            few = rng.sample(range(len(ALPHABET)), 3)
            weights = [8 * (number in few) for number in range(len(ALPHABET))]
        weights[ALPHABET.index("put")] += 1
        weights[ALPHABET.index("cancel")] *= rng.random() < 0.3
        keys = rng.sample(range(len(KEYS)), rng.randint(1, 4))
        sizes = rng.sample(range(SIZES), rng.randint(1, 5))
        for _ in range(rng.randint(4, _OPERATIONS_MAX)):
            name = rng.choices(ALPHABET, weights)[0]
            first = rng.randrange(16)
            if name in ("get", "put", "delete"):
                first = rng.choice(keys)
            arguments = (rng.randrange(clients), first, rng.choice(sizes))
            operations.append(Operation(name, arguments[: 1 + ARGUMENTS[name]]))
        if rng.random() < _RECLAIMING_PROBABILITY:
            return rng.choice((_reading_what_is_reclaimed, _replacing_what_is_moved))(rng)
        if rng.random() < SMALL_TREE_PROBABILITY:
            operations.append(Operation("small-tree", (1,)))
        return tuple(operations)

    def program(self, operations: Operations, coverage: Coverage) -> Program[None]:
        """See World.program."""
        setup = {each.name: each.arguments or (0,) for each in operations}
        origin = prepared(SHAPES[setup.get("device", (0,))[0] % len(SHAPES)])

        async def program(control: Control) -> None:
            with in_force(OF_TREES, wanted=bool(setup.get("small-tree", (0,))[0])):
                await _Life(control, operations, setup, origin, coverage).run()

        return program


def _reading_what_is_reclaimed(rng: random.Random) -> Operations:
    """One client reads values that have an extent each, one replaces them, one reclaims."""
    large = next(number for number, shape in enumerate(SHAPES) if shape.large)
    operations = [
        Operation("device", (large,)),
        Operation("cache", (rng.randrange(2),)),
        Operation("latency", (_LATENCY_MAX - 1,)),
    ]
    for _ in range(rng.randint(2, 4)):
        operations.append(Operation("get", (0, rng.randrange(2))))
        operations.append(Operation("put", (1, rng.randrange(2), rng.randrange(SIZES))))
        operations += [Operation("sync", (2,)), Operation("reclaim", (2,))]
    return tuple(operations)


def _replacing_what_is_moved(rng: random.Random) -> Operations:
    """One client reclaims extents that are live in part, others replace what lives in them."""
    thin = [number for number, shape in enumerate(SHAPES) if shape.thin]
    operations = [
        Operation("device", (rng.choice(thin),)),
        Operation("cache", (rng.randrange(2),)),
        Operation("latency", (rng.randrange(1, _LATENCY_MAX),)),
    ]
    for _ in range(rng.randint(2, 5)):
        operations.append(Operation("reclaim", (0,)))
        for client in (1, 2):
            key, size = rng.randrange(len(KEYS)), rng.randrange(SIZES)
            waiting = Operation("get", (client, rng.randrange(len(KEYS))))
            operations += [waiting] * rng.choice((0, 0, 1, 3, 8))
            operations.append(Operation("put", (client, key, size)))
        operations.append(Operation(rng.choice(("extend", "create")), (1, rng.randrange(8), 4)))
    return tuple(operations)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A moment at which the power might have been cut.

    Args:
        at: the moment in the history.
        durable: what had ended before that moment survives.
        point: of the device.
    """

    at: int
    durable: int
    point: PowerCutPoint


class _Life:
    """One case while it runs."""

    def __init__(
        self,
        control: Control,
        operations: Operations,
        setup: dict[str, tuple[int, ...]],
        origin: Prepared,
        coverage: Coverage,
    ) -> None:
        self._control = control
        self._operations = operations
        self._origin = origin
        self._coverage = coverage
        self._cut_wanted = setup.get("cut", (0,))[0]
        self._fault = setup.get("fault")
        self._options = StoreOptions(
            background=bool(setup.get("background", (0,))[0]),
            cache_bytes=0 if setup.get("cache", (0,))[0] else 1 << 20,
            commit_interval_s=COMMIT_INTERVAL_S,
        )
        self._checkpoints_max = 1 + setup.get("latency", (0,))[0] % _LATENCY_MAX
        self._device = origin.device.power_cut()
        self._steps_before = 0
        self._clients: Clients | None = None
        self._cut: _Cut | None = None
        self._watch: ReclamationWatch | None = None

    async def run(self) -> None:
        """Everything, from opening to the last check."""
        self._coverage.counts[f"device {self._origin.shape.name}"] += 1
        self._device.reseed(self._control.draw(_SEEDS), self._checkpoints_max)
        try:
            async with Store.open(self._device, options=self._options) as store:
                self._watch = ReclamationWatch(
                    store, self._coverage, lambda: self._fault is not None
                )
                clients = self._begin(store)
                await self._act(clients)
                applied = applied_mark(store)
                await clients.look()
                # Reclamation in the background may have moved what was looked at.
                if not store.health.reason and applied_mark(store) == applied:
                    check_account(store, clients.values.entries)
                end = clients.history.tick()
                closed = clients.history.tick()
                durable = clients.durable
        except ShardfsError as error:
            if self._fault is None or isinstance(error, CorruptionError):
                raise
            return
        self._device.observer = None
        healthy = not store.health.reason
        assert healthy or self._fault is not None, f"the store is {store.health.reason}"
        calls = clients.history.calls
        violation = find_violation(calls, StoreModel())
        assert violation is None, f"{violation}"
        if self._cut is not None:
            left = self._after(self._cut.point)
            await self._check_left(left, clients, self._cut.at, self._cut.durable, "a power cut")
        elif healthy:
            await self._check_left(self._device.power_cut(), clients, closed, end, "a clean close")
        else:
            left = self._after(self._device.power_cut_point())
            await self._check_left(left, clients, closed, durable, "an error")

    def _begin(self, store: Store) -> Clients:
        self._clients = Clients(
            self._control,
            store,
            self._origin.content,
            Values(self._origin.content, self._origin.lengths),
            self._coverage,
            is_atomic=not self._origin.shape.crowded,
            faulty=self._fault is not None,
            background=self._options.background,
        )
        self._steps_before = self._device.step
        if self._cut_wanted:
            self._device.observer = self._observe
        if self._fault is not None:
            kind, skip = (*self._fault, 0)[:2]
            kind_name = FAULT_KINDS[kind % len(FAULT_KINDS)]
            self._device.fail(kind_name, skip=skip)
            self._coverage.counts[f"fault {kind_name}"] += 1
        return self._clients

    def _observe(self, operation: DeviceOperation) -> None:
        if operation.step - self._steps_before == self._cut_wanted and self._clients is not None:
            durable = self._clients.durable
            at = self._clients.history.tick()
            self._cut = _Cut(at, durable, self._device.power_cut_point())
            if self._watch is not None:
                self._watch.cut()

    async def _act(self, clients: Clients) -> None:
        lists: dict[int, list[tuple[int, Operation]]] = {}
        for place, operation in enumerate(self._operations):
            if operation.name in ALPHABET:
                client = (*operation.arguments, 0)[0] % CLIENTS_MAX
                lists.setdefault(client, []).append((place, operation))
        async with trio.open_nursery() as nursery:
            for client in sorted(lists):
                nursery.start_soon(clients.perform, tuple(lists[client]), name=f"client {client}")

    # --- what is left ---------------------------------------------------------------------------

    def _after(self, point: PowerCutPoint) -> SimulatedDevice:
        """The device after a cut, in a drawn state; often the one that loses most."""
        rng = random.Random(self._control.draw(_SEEDS))
        choices = list(point.choices(4, rng))
        choice = choices[self._control.draw(len(choices))]
        torn = any(survivor.units for survivor in choice)
        kind = "nothing left" if not choice else "torn" if torn else "whole"
        self._coverage.counts[f"crash {kind}"] += 1
        left = self._device.after_power_cut(point, choice)
        self._coverage.crash_states.add(left.digest())
        return left

    async def _check_left(
        self, device: SimulatedDevice, clients: Clients, at: int, durable: int, behind: str
    ) -> None:
        device.reseed(0)
        read_only = self._control.draw(4) > 0
        options = StoreOptions(background=False, read_only=read_only)
        async with Store.open(device, options=options) as store:
            assert read_only or not store.health.reason, f"it opens {store.health.reason}"
            found = await clients.values.read_all(store)
            check_account(store, clients.values.entries)
            if self._control.draw(_FSCK_EVERY) == 1:
                await check_clean(store, device)
        calls = after_a_cut(clients.history.calls, at, durable, found)
        violation = find_violation(calls, StoreModel())
        assert violation is None, f"behind {behind} was found what fits no order: {violation}"
