"""Cases run exactly the same again: in this process, in another, and from their lines."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfs.checking.conformance.case import Operation
from shardfs.checking.conformance.running import Case, decode_line, encode_line, run_case, worlds
from shardfs.checking.schedule import NondeterminismError, Trace
from shardfs.errors import UsageError
from tests.checking.cases import check_same_elsewhere

SEEDS = (3, 4, 17, 414)

operations = st.lists(
    st.builds(
        Operation,
        st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True),
        st.lists(st.integers(0, 10**9), max_size=4).map(tuple),
    ),
    min_size=1,
).map(tuple)
traces = st.lists(st.integers(0, 300)).map(lambda choices: Trace((*choices, 1)))


def test_every_world_has_its_own_name() -> None:
    assert all(world.name == name for name, world in worlds().items())
    assert "store" in worlds()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_case_is_the_same_again_after_others(seed: int) -> None:
    first = run_case(Case("store", seed))
    run_case(Case("store", seed + 1))
    again = run_case(decode_line(first.line))
    assert (again.line, again.run.trace) == (first.line, first.run.trace)
    assert again.coverage == first.coverage


@pytest.mark.parametrize("hash_seed", ["0", "1234"])
def test_a_case_is_the_same_in_another_process(hash_seed: str) -> None:
    check_same_elsewhere("store", SEEDS, hash_seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_choices_written_out_repeat_the_case(seed: int) -> None:
    first = run_case(Case("store", seed))
    written_out = Case("store", seed, first.operations, first.run.trace)
    again = run_case(decode_line(encode_line(written_out)))
    assert again.digest == first.digest


def test_a_line_of_something_else_is_noticed() -> None:
    line = run_case(Case("store", 5)).line
    wrong = line[:-16] + "0123456789abcdef"
    with pytest.raises(NondeterminismError, match="have changed since"):
        run_case(decode_line(wrong))


def test_an_unknown_world_and_operation() -> None:
    with pytest.raises(UsageError, match="there is no world"):
        run_case(Case("nowhere", 1))
    with pytest.raises(UsageError, match="there is no operation"):
        run_case(Case("store", 1, (Operation("fly"),)))


@given(st.integers(0, 10**18), st.none() | operations, st.none() | traces)
def test_lines_come_back(
    seed: int, operations: tuple[Operation, ...] | None, choices: Trace | None
) -> None:
    case = Case("store", seed, operations, choices, "0123456789abcdef")
    line = encode_line(case)
    assert decode_line(line) == case
    assert not set(line) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.")


@given(st.text(max_size=200) | st.text("1:storez.p-_A", max_size=60).map("1:store:1::z".__add__))
def test_any_other_text_is_refused(text: str) -> None:
    try:
        case = decode_line(text)
    except UsageError:
        return
    assert decode_line(encode_line(case)) == case


def test_many_cases_leave_nothing_behind() -> None:
    def objects_after(seeds: range) -> int:
        for seed in seeds:
            run_case(Case("store", seed))
        gc.collect()
        return len(gc.get_objects())

    before = objects_after(range(20))
    assert objects_after(range(20, 80)) - before < 500
