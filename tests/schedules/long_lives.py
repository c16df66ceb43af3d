"""One store in use for a very long time: rounds of concurrent clients, each checked by itself."""

from __future__ import annotations

import trio

from shardfs.checking.conformance.case import Coverage, Operation
from shardfs.checking.conformance.concurrent_clients import COMMIT_INTERVAL_S, Clients, Values
from shardfs.checking.conformance.concurrent_devices import Shape, prepared
from shardfs.checking.conformance.concurrent_world import ALPHABET
from shardfs.checking.conformance.store_checks import applied_mark, check_account
from shardfs.checking.schedule import Control
from shardfs.checking.schedule.linearizability import find_violation
from shardfs.checking.schedule.store_histories import StoreModel
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store

CLIENTS = 3
OPERATIONS_A_ROUND = 24
ORIGIN = prepared(Shape("aged", extent_count=48, aged=4))
OPTIONS = StoreOptions(cache_bytes=0, commit_interval_s=COMMIT_INTERVAL_S)


async def a_long_life(control: Control, steps: int) -> int:
    """Clients with drawn operations beside the store's own tasks, for that many steps.

    Returns:
        How many rounds there were.
    """
    device = ORIGIN.device.power_cut()
    device.reseed(control.draw(1 << 30), checkpoints_max=3)
    values = Values(ORIGIN.content, ORIGIN.lengths)
    content = ORIGIN.content
    rounds = 0
    async with Store.open(device, options=OPTIONS) as store:
        while control.steps < steps:
            rounds += 1
            clients = Clients(
                control,
                store,
                content,
                values,
                Coverage(),
                is_atomic=True,
                faulty=False,
                background=True,
            )
            async with trio.open_nursery() as nursery:
                for client in range(CLIENTS):
                    nursery.start_soon(clients.perform, _drawn(control, rounds, client))
            applied = applied_mark(store)
            await clients.look()
            if applied_mark(store) == applied:  # else reclamation has moved what was read
                check_account(store, values.entries)
            violation = find_violation(clients.history.calls, StoreModel())
            assert violation is None, f"round {rounds}: {violation}"
            content = await values.read_all(store)
    async with Store.open(device, options=OPTIONS) as store:
        assert await values.read_all(store) == content, "a clean close changed the content"
    return rounds


def _drawn(control: Control, round_: int, client: int) -> tuple[tuple[int, Operation], ...]:
    operations = []
    for place in range(OPERATIONS_A_ROUND // CLIENTS):
        name = ALPHABET[control.draw(len(ALPHABET))]
        numbers = (client, control.draw(16), control.draw(10))
        token = round_ * OPERATIONS_A_ROUND + place * CLIENTS + client
        operations.append((1_000_000 + token, Operation(name, numbers)))
    return tuple(operations)
