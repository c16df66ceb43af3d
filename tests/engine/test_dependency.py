"""The algebra of dependencies: conjunctions settle exactly when their operands say so."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from shardfs.engine.dependency import PERSISTENT, Dependency, all_of

TROUBLE = RuntimeError("lost")


def test_persistent_is_the_neutral_element() -> None:
    one = Dependency()
    assert (one & PERSISTENT) is one
    assert (PERSISTENT & one) is one
    assert (one & one) is one
    assert all_of([]) is PERSISTENT
    assert all_of([PERSISTENT, one, PERSISTENT]) is one


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_conjunction_is_persistent_when_the_last_operand_is(order: tuple[int, ...]) -> None:
    operands = [Dependency() for _ in range(3)]
    nested = (operands[0] & operands[1]) & operands[2]
    flat = all_of(operands)
    for count, index in enumerate(order, 1):
        assert not nested.settled and not flat.settled
        operands[index].resolve()
        assert nested.is_persistent() == flat.is_persistent() == (count == 3)


@given(st.permutations(range(4)), st.integers(0, 3))
def test_a_conjunction_fails_as_soon_as_one_operand_has(order: list[int], bad: int) -> None:
    operands = [Dependency() for _ in range(4)]
    whole = all_of([operands[0] & operands[1], operands[2], operands[3]])
    failed = False
    for index in order:
        if index == bad:
            operands[index].fail(TROUBLE)
            failed = True
        else:
            operands[index].resolve()
        assert (whole.failure is TROUBLE) == failed
        assert not whole.is_persistent()
    later = whole & Dependency()
    assert later.failure is TROUBLE
    assert (whole & PERSISTENT).failure is TROUBLE


def test_callbacks_run_once() -> None:
    calls: list[str] = []
    one = Dependency()
    one.on_settled(lambda: calls.append("before"))
    one.resolve()
    one.on_settled(lambda: calls.append("after"))
    assert calls == ["before", "after"]
    with pytest.raises(AssertionError):
        one.fail(TROUBLE)


async def test_waiting() -> None:
    good, bad = Dependency(), Dependency()
    done: list[str] = []

    async def wait(name: str, dependency: Dependency) -> None:
        try:
            await dependency.wait()
            done.append(name)
        except RuntimeError as error:
            assert error is TROUBLE
            done.append(f"{name} failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "good", good)
        nursery.start_soon(wait, "bad", bad)
        nursery.start_soon(wait, "both", good & bad)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        good.resolve()
        await trio.testing.wait_all_tasks_blocked()
        assert done == ["good"]
        bad.fail(TROUBLE)
    assert sorted(done) == ["bad failed", "both failed", "good"]
    await PERSISTENT.wait()


def test_many_operands_cost_a_step_each() -> None:
    operands = [Dependency() for _ in range(20_000)]
    whole = all_of(operands)
    for operand in operands:
        operand.resolve()
    assert whole.is_persistent()
