"""The model of extents: what it allows and what not, and that the engine's chunks live on it."""

from __future__ import annotations

import pytest

from shardfs import limits
from shardfs.checking.models.extents_model import (
    ExtentsModel,
    Found,
    Position,
    UnreadableError,
)

BLOCK = limits.BLOCK_BYTES
EXTENT = 16 * BLOCK


def model_with_two() -> tuple[ExtentsModel, Position, Position]:
    model = ExtentsModel(EXTENT, BLOCK)
    return model, model.append(3, b"a", 100), model.append(3, b"b", 100)


def test_appends_follow_each_other_and_end_within_the_extent() -> None:
    model, first, second = model_with_two()
    assert (first.offset, second.offset, model.write_pointer(3)) == (0, 100, 200)
    assert model.append(3, b"c", 8, offset=BLOCK).offset == BLOCK, "padded to a block"
    for wrong in (0, BLOCK, BLOCK + 16, 3 * BLOCK):
        with pytest.raises(AssertionError, match="write pointer"):
            model.append(3, b"d", 8, offset=wrong)
    model.append(3, b"e", EXTENT - BLOCK - 8)
    with pytest.raises(AssertionError, match="extent of"):
        model.append(3, b"f", 8)


def test_a_reset_makes_everything_unreadable_at_once() -> None:
    model, first, _ = model_with_two()
    assert model.read(first) == b"a"
    model.reset(3)
    assert (model.write_pointer(3), model.epoch(3)) == (0, 1)
    with pytest.raises(UnreadableError):
        model.read(first)
    assert model.read(model.append(3, b"new", 100)) == b"new"
    with pytest.raises(UnreadableError):
        model.read(first)


@pytest.mark.parametrize("pointer", [100, 104, 200, BLOCK])
def test_a_crash_leaves_a_pointer_between_the_recorded_and_the_last(pointer: int) -> None:
    model, first, second = model_with_two()
    at_first = {(3, 0): first.end}
    model.record(at_first)
    model.persist(first)
    assert model.crash({3: Found(0, pointer)}) == {(3, 0, 0)}
    assert model.read(first) == b"a"
    if pointer >= second.end:
        assert model.read(second) == b"b"
    else:
        with pytest.raises(UnreadableError):
            model.read(second)


@pytest.mark.parametrize("pointer", [0, 99, BLOCK + 1])
def test_a_crash_leaves_no_other_pointer(pointer: int) -> None:
    model, first, _ = model_with_two()
    model.record({(3, 0): first.end})
    with pytest.raises(AssertionError, match="allowed are 100 to 4096"):
        model.crash({3: Found(0, pointer)})


def test_a_reset_may_be_undone_until_it_is_persistent() -> None:
    model, first, _ = model_with_two()
    model.record(model.write_pointers())
    model.reset(3)
    undone = model.copy()
    undone.crash({3: Found(0, 200)})
    assert undone.read(first) == b"a"
    model.copy().crash({3: Found(1, 0)})
    model.persist_reset(3)
    with pytest.raises(AssertionError, match="allowed are 1 to 1"):
        model.crash({3: Found(0, 200)})


def test_a_reset_of_an_extent_with_nothing_in_it_may_be_undone_too() -> None:
    # The engine's delta log has extents of its own: to this model they are empty, and are reset.
    model = ExtentsModel(EXTENT, BLOCK, epoch=1)
    model.reset(2)
    interrupted = model.copy()
    assert interrupted.crash({2: Found(1, 0)}) == set()
    assert interrupted.epoch(2) == 1
    model.persist_reset(2)
    with pytest.raises(AssertionError, match="epoch 1, allowed are 2 to 2"):
        model.crash({2: Found(1, 0)})


def test_an_extent_never_written_is_found_empty() -> None:
    model = ExtentsModel(EXTENT, BLOCK, epoch=1)
    model.crash({0: Found(1, 0)})
    with pytest.raises(AssertionError):
        model.crash({0: Found(1, 8)})
    with pytest.raises(AssertionError):
        model.crash({0: Found(2, 0)})
