"""The specification of the store by examples: what a crash may leave, and what it may not."""

from __future__ import annotations

import pytest

from shardfs.checking.models.key_value_model import KeyValueModel
from shardfs.engine.dependency import Dependency
from shardfs.errors import NoSpaceError


def test_values_parts_and_ranges() -> None:
    model = KeyValueModel({b"a": b"12345"})
    model.put(b"b", b"")
    model.put(b"c", b"x")
    model.delete(b"c")
    assert (model.get(b"a"), model.get(b"a", 1, 2), model.get(b"a", 9, 1)) == (b"12345", b"23", b"")
    assert (model.get(b"b"), model.get(b"c")) == (b"", None)
    assert model.scan(b"a", b"b") == [(b"a", b"12345")]
    assert [key for key, _ in model.scan(b"", b"\xff")] == [b"a", b"b"]


def test_a_crash_leaves_a_prefix_of_batches() -> None:
    model = KeyValueModel({b"a": b"0"})
    model.put(b"a", b"1")
    model.apply({b"b": b"2", b"a": None})
    assert model.states_after_crash() == [{b"a": b"0"}, {b"a": b"1"}, {b"b": b"2"}]
    with pytest.raises(AssertionError, match="b'a' is absent, not 1 bytes"):
        model.crash({})
    model.crash({b"a": b"1"})
    assert model.states_after_crash() == [{b"a": b"1"}]


def test_a_kept_promise_covers_everything_before_it() -> None:
    model = KeyValueModel()
    promises = [Dependency() for _ in range(3)]
    for number, promise in enumerate(promises):
        model.put(b"%d" % number, b"", promise)
    assert len(model.states_after_crash()) == 4
    promises[1].resolve()
    assert model.states_after_crash() == [
        {b"0": b"", b"1": b""},
        {b"0": b"", b"1": b"", b"2": b""},
    ]
    assert model.promises == promises[2:]


def test_a_sync_covers_what_was_applied_before_it_began() -> None:
    model = KeyValueModel()
    model.put(b"a", b"")
    applied_count = model.applied_count
    model.put(b"b", b"")
    model.persist(applied_count)
    assert model.states_after_crash() == [{b"a": b""}, {b"a": b"", b"b": b""}]
    model.persist()
    assert model.states_after_crash() == [{b"a": b"", b"b": b""}]


def test_a_snapshot_is_not_bound_by_promises_kept_later() -> None:
    model = KeyValueModel()
    promise = Dependency()
    model.put(b"a", b"", promise)
    snapshot = model.snapshot()
    promise.resolve()
    assert len(model.states_after_crash()) == 1
    assert len(snapshot.states_after_crash()) == 2


def test_a_refused_change_was_never_made() -> None:
    model = KeyValueModel({b"a": b"0"})
    with pytest.raises(NoSpaceError), model.applying({b"a": b"1"}):
        during = model.snapshot()
        raise NoSpaceError("full")
    assert model.content == {b"a": b"0"}
    assert model.states_after_crash() == [{b"a": b"0"}]
    assert {b"a": b"1"} in during.states_after_crash(), "a crash within the call may leave it"


def test_after_a_loss_of_bytes_only_what_was_written_is_read() -> None:
    model = KeyValueModel()
    model.put(b"a", b"1")
    model.put(b"a", b"2")
    assert all(model.was_written(b"a", value) for value in (b"1", b"2", None))
    assert not model.was_written(b"a", b"3")
    assert not model.was_written(b"b", b"1")
