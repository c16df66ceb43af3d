"""The linearizability check against histories of known standing, and against brute force."""

from __future__ import annotations

from itertools import permutations

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from shardfs.checking.schedule import Control, Exhaustive, explore
from shardfs.checking.schedule.linearizability import UNKNOWN, Call, History, find_violation
from shardfs.checking.schedule.store_histories import (
    AnyOperation,
    Delete,
    Get,
    ListAll,
    OneKeyModel,
    OneKeyOperation,
    Put,
    PutMany,
    StoreModel,
    key_of,
)

A, B = b"a", b"b"
ONE, TWO = b"1", b"2"

Calls = list[Call[OneKeyOperation]]


def test_a_read_beside_a_write_may_see_either() -> None:
    for seen in (None, ONE):
        calls: Calls = [Call(0, Put(A, ONE), 1, 4), Call(1, Get(A), 2, 3, seen)]
        assert find_violation(calls, OneKeyModel()) is None


def test_a_read_behind_a_write_sees_it() -> None:
    calls: Calls = [Call(0, Put(A, ONE), 1, 2), Call(1, Get(A), 3, 4, None)]
    violation = find_violation(calls, OneKeyModel())
    assert violation is not None
    assert violation.longest == (0,)
    assert "[3, 4] Get(key=b'a') -> None" in str(violation)


def test_two_readers_agree_on_the_order_of_two_writes() -> None:
    calls: Calls = [
        Call(0, Put(A, ONE), 1, 12),
        Call(1, Put(A, TWO), 2, 11),
        Call(2, Get(A), 3, 4, ONE),
        Call(3, Get(A), 5, 6, TWO),
        Call(4, Get(A), 7, 8, ONE),
    ]
    assert find_violation(calls, OneKeyModel()) is not None
    assert find_violation(calls[:-1], OneKeyModel()) is None


def test_a_call_that_never_ended_may_count_late_or_never() -> None:
    write: Call[OneKeyOperation] = Call(0, Put(A, ONE), 1)
    before: Call[OneKeyOperation] = Call(1, Get(A), 2, 3, None)
    behind: Call[OneKeyOperation] = Call(2, Get(A), 4, 5, ONE)
    gone: Call[OneKeyOperation] = Call(3, Get(A), 6, 7, None)
    assert find_violation([write, before], OneKeyModel()) is None
    assert find_violation([write, before, behind], OneKeyModel()) is None
    assert find_violation([write, before, behind, gone], OneKeyModel()) is not None


def test_keys_come_apart() -> None:
    calls: Calls = [
        Call(0, Put(A, ONE), 1, 2),
        Call(1, Get(B), 3, 4, None),
        Call(2, Get(B), 5, 6, ONE),
    ]
    violation = find_violation(calls, OneKeyModel(), key_of)
    assert violation is not None and violation.part == B


def test_half_a_batch_in_a_list_is_a_violation() -> None:
    both = PutMany(((A, ONE), (B, ONE)))
    half = ((A, ONE),)
    calls: list[Call[AnyOperation]] = [
        Call(0, both, 1, 4),
        Call(1, ListAll(), 2, 3, half),
    ]
    assert find_violation(calls, StoreModel()) is not None
    calls[1].result = (*half, (B, ONE))
    assert find_violation(calls, StoreModel()) is None


@st.composite
def histories(draw: st.DrawFn) -> Calls:
    """Up to five calls on one key, in any overlap, with any results."""
    count = draw(st.integers(1, 5))
    times = draw(st.permutations(range(2 * count)))
    calls: Calls = []
    for number in range(count):
        began, ended = sorted(times[2 * number : 2 * number + 2])
        operations: list[OneKeyOperation] = [Put(A, ONE), Put(A, TWO), Get(A), Delete(A)]
        operation = draw(st.sampled_from(operations))
        result = draw(st.sampled_from([None, ONE, TWO])) if isinstance(operation, Get) else None
        if draw(st.booleans()) and draw(st.booleans()):
            calls.append(Call(number, operation, began))
        else:
            calls.append(Call(number, operation, began, ended, result))
    return calls


def _brute_force(calls: Calls) -> bool:
    """Whether some order of some of the calls, all ended ones among them, fits."""
    model = OneKeyModel()
    for count in range(len(calls) + 1):
        for order in permutations(calls, count):
            if any(call.ended is not None and call not in order for call in calls):
                continue
            in_time = all(
                later.ended is None or later.ended > call.began
                for at, call in enumerate(order)
                for later in order[at + 1 :]
            )
            state, fits = model.initial(), in_time
            for call in order:
                allowed, state = model.step(state, call.operation, call.result)
                fits = fits and allowed
            if fits:
                return True
    return False


@settings(max_examples=300)
@given(histories())
def test_agrees_with_brute_force(calls: Calls) -> None:
    assert (find_violation(calls, OneKeyModel()) is None) == _brute_force(calls)


def test_a_long_history_is_quick() -> None:
    calls: Calls = []
    for number in range(2000):
        began = 3 * number
        operation: OneKeyOperation = Put(A, b"%d" % number) if number % 2 == 0 else Get(A)
        result = None if number % 2 == 0 else b"%d" % (number - 1)
        calls.append(Call(number, operation, began, began + 7, result))
    assert find_violation(calls, OneKeyModel()) is None


def test_reads_that_never_ended_cost_nothing() -> None:
    # Each could be in the order or not: 2^40 orders, if anybody looked at them.
    calls: Calls = [Call(0, Put(A, ONE), 0, 1, None), Call(1, Put(A, TWO), 2, 90, None)]
    calls += [Call(2 + number, Get(A), 3 + number) for number in range(40)]
    calls.append(Call(99, Get(A), 91, 92, ONE))
    assert find_violation(calls, OneKeyModel()) is not None


def test_a_register_that_writes_late_is_caught_by_every_schedule() -> None:
    async def program(control: Control) -> None:
        history: History[OneKeyOperation] = History()
        value: bytes | None = None

        async def put() -> None:
            """Acknowledges before the value is there."""
            nonlocal value
            old = value
            await trio.lowlevel.checkpoint()
            value = ONE if old is None else TWO

        async def get() -> bytes | None:
            await trio.lowlevel.checkpoint()
            return value

        async def write() -> None:
            await history.record(Put(A, ONE), put)

        async def read() -> None:
            await history.record(Get(A), get)
            await history.record(Get(A), get)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(write)
            nursery.start_soon(read)
        violation = find_violation(history.calls, OneKeyModel(), key_of)
        assert violation is None, str(violation)

    assert explore(program, Exhaustive(), runs_max=10_000).failure is not None


async def test_a_call_that_raises_never_ended() -> None:
    history: History[OneKeyOperation] = History()

    async def fail() -> None:
        raise OSError("gone")

    try:
        await history.record(Delete(A), fail)
    except OSError:
        assert history.calls[0].ended is None
    assert history.calls[0].result is UNKNOWN
