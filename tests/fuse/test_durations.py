"""fuse/durations.py: histograms of durations, and the quantiles taken from them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfs.fuse.durations import NONE, SUM, Durations, Summary, no_durations, together


def counted(*durations_ns: int) -> Durations:
    """Durations as the guard of a handler counts them."""
    durations = no_durations()
    for duration_ns in durations_ns:
        durations[duration_ns.bit_length()] += 1
        durations[SUM] += duration_ns
    return durations


def test_every_bucket_has_its_bounds() -> None:
    summary = Summary.of(counted(0, 1, 1023, 1024, 1025, (1 << 63) - 1))
    assert summary.count == 6
    assert summary.buckets == ((1, 1), (2, 1), (1024, 1), (2048, 2), (1 << 63, 1))
    assert summary.seconds == pytest.approx((1 << 63) / 1e9)


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_is_right_within_a_factor_of_two(values: list[int], share: float) -> None:
    """Of the values as sorted, the one that as many do not exceed."""
    true = sorted(values)[min(len(values) - 1, max(0, -(-len(values) * share // 1).__int__() - 1))]
    found = Summary.of(counted(*values)).quantile_ns(share)
    assert true / 2 <= found <= 2 * true + 1


def test_nothing_counted() -> None:
    assert Summary.of(no_durations()) == NONE
    assert NONE.quantile_ns(0.5) == 0 and NONE.as_answer()["buckets"] == []


def test_since_and_together_are_exact() -> None:
    generator = random.Random(7)
    first = [generator.randrange(1, 10**9) for _ in range(300)]
    second = [generator.randrange(1, 10**9) for _ in range(200)]
    before, after = Summary.of(counted(*first)), Summary.of(counted(*first, *second))
    recent = after.since(before)
    assert recent.buckets == Summary.of(counted(*second)).buckets and recent.count == 200
    assert recent.seconds == pytest.approx(sum(second) / 1e9)
    whole = together([before, recent])
    assert (whole.count, whole.buckets) == (after.count, after.buckets)
    assert Summary.from_answer(after.as_answer()).buckets == after.buckets
