"""Traces as text: there and back, and nothing but the one error for other text."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardfs.checking.schedule import Trace, decode, encode
from shardfs.checking.schedule.trace import trimmed
from shardfs.errors import UsageError

DIGEST = "0123456789abcdef"


@given(st.lists(st.integers(0, 300)), st.sampled_from(["", DIGEST]))
def test_round_trip(choices: list[int], digest: str) -> None:
    trace = Trace(trimmed(choices), digest)
    text = encode(trace)
    assert decode(text) == trace
    assert text.isascii() and text.replace(".", "").replace("-", "").replace("_", "").isalnum()


def test_repetition_costs_little() -> None:
    assert len(encode(Trace((0,) * 100_000 + (1,)))) < 250


@given(st.text(max_size=60))
@example("1.p.")
@example("1.zeJw.")
@example("1.p____.")
@example(f"1.pgA.{DIGEST}")
@example(f"1.p{'_' * 40}.")
@example("1.pA.xyz")
def test_any_text_is_a_trace_or_misuse(text: str) -> None:
    with contextlib.suppress(UsageError):
        decode(text)
    with contextlib.suppress(UsageError):
        decode(f"1.p{text}.")
    with contextlib.suppress(UsageError):
        decode(f"1.z{text}.")


@pytest.mark.parametrize(
    "text", ["", "1", "2.p.", "1.q.", "1.pA.", f"1.pAQ.{DIGEST[1:]}", "1.pgA."]
)
def test_damaged_text(text: str) -> None:
    with pytest.raises(UsageError):
        decode(text)


def test_deviations() -> None:
    assert Trace((0, 3, 0, 1)).deviations == 2
