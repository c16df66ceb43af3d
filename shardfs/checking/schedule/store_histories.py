"""Sequential models of a key-value store, for the check of its concurrent histories.

Role: the operations as values, a model of one key (histories that only put, get and delete come
apart by key), and a model of all keys together (for batches and lists). What a power cut leaves
is a history too: one more list, somewhere behind what is known to be durable (after_a_cut).

Not here: the check itself (linearizability.py), crashes and durability (checking/models).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from shardfs.checking.schedule.linearizability import UNKNOWN, Call


class Put(NamedTuple):
    """Set a key; no result."""

    key: bytes
    value: bytes


class Get(NamedTuple):
    """Gives the value, or None."""

    key: bytes


class Delete(NamedTuple):
    """Remove a key; no result."""

    key: bytes


class PutMany(NamedTuple):
    """Set and remove several keys at once: a value of None removes."""

    changes: tuple[tuple[bytes, bytes | None], ...]


class Extend(NamedTuple):
    """Add to the end of a key's value, of an empty one if there is none; no result."""

    key: bytes
    value: bytes


class ListAll(NamedTuple):
    """Gives all keys and values, as a tuple of pairs in the order of the keys."""


OneKeyOperation = Put | Get | Delete
AnyOperation = OneKeyOperation | PutMany | Extend | ListAll


def key_of(operation: OneKeyOperation) -> bytes:
    """The part of a history that an operation belongs to, for OneKeyModel."""
    return operation.key


class OneKeyModel:
    """One key: its value, or None."""

    def initial(self) -> Hashable:
        """See Model.initial."""
        return None

    def step(
        self, state: Hashable, operation: OneKeyOperation, result: object
    ) -> tuple[bool, Hashable]:
        """See Model.step."""
        match operation:
            case Put(_, value):
                return True, value
            case Delete(_):
                return True, None
            case Get(_):
                return result is UNKNOWN or result == state, state

    def is_reading(self, operation: OneKeyOperation) -> bool:
        """See Model.is_reading."""
        return isinstance(operation, Get)


class Content:
    """All keys and values as one value that can be compared and hashed. Never changed.

    Args:
        values: by key.
        fingerprint: hash of all pairs, whatever their order.
    """

    __slots__ = ("fingerprint", "values")

    def __init__(self, values: dict[bytes, bytes], fingerprint: int) -> None:
        self.values = values
        self.fingerprint = fingerprint

    def __hash__(self) -> int:
        return self.fingerprint

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and self.values == other.values

    def changed(self, changes: Iterable[tuple[bytes, bytes | None]]) -> Content:
        """The content with other values; None removes."""
        values = dict(self.values)
        fingerprint = self.fingerprint
        for key, new in changes:
            old = values.pop(key, None)
            if old is not None:
                fingerprint ^= hash((key, old))
            if new is not None:
                values[key] = new
                fingerprint ^= hash((key, new))
        return Content(values, fingerprint)


class StoreModel:
    """All keys; the state is a Content."""

    def initial(self) -> Hashable:
        """See Model.initial."""
        return Content({}, 0)

    def step(
        self, state: Hashable, operation: AnyOperation, result: object
    ) -> tuple[bool, Hashable]:
        """See Model.step."""
        assert isinstance(state, Content)
        match operation:
            case Get(key):
                return result is UNKNOWN or result == state.values.get(key), state
            case ListAll():
                listed = tuple(sorted(state.values.items()))
                return result is UNKNOWN or result == listed, state
            case Put(key, value):
                return True, state.changed(((key, value),))
            case Delete(key):
                return True, state.changed(((key, None),)) if key in state.values else state
            case PutMany(changes):
                return True, state.changed(changes) if changes else state
            case Extend(key, value):
                return True, state.changed(((key, state.values.get(key, b"") + value),))

    def is_reading(self, operation: AnyOperation) -> bool:
        """See Model.is_reading."""
        return isinstance(operation, Get | ListAll) or operation == PutMany(())


def after_a_cut(
    calls: Iterable[Call[AnyOperation]],
    cut: int,
    durable: int,
    found: tuple[tuple[bytes, bytes], ...],
) -> list[Call[AnyOperation]]:
    """The history that a power cut ends, with what was found behind it.

    What is found is the state behind some prefix of an order of the calls, and the prefix holds
    everything that was durable: as if somebody had listed all keys between `durable` and the cut.

    Args:
        calls: of the whole run.
        cut: a moment (History.tick). Calls that had not ended then may have happened or not.
        durable: a moment; calls that had ended by then are known to survive.
        found: all keys and values, in the order of the keys.
    """
    known: list[Call[AnyOperation]] = []
    for call in calls:
        if call.began < cut:
            copy = Call(call.number, call.operation, 2 * call.began)
            if call.ended is not None and call.ended < cut:
                copy.ended, copy.result = 2 * call.ended, call.result
            known.append(copy)
    known.append(Call(len(known), ListAll(), 2 * durable + 1, 2 * cut, found))
    return known
