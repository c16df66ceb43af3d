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


class StoreModel:
    """All keys: a frozenset of pairs of key and value."""

    def initial(self) -> Hashable:
        """See Model.initial."""
        return frozenset()

    def step(
        self, state: Hashable, operation: AnyOperation, result: object
    ) -> tuple[bool, Hashable]:
        """See Model.step."""
        assert isinstance(state, frozenset)
        content: dict[bytes, bytes] = dict(state)
        changes: tuple[tuple[bytes, bytes | None], ...] = ()
        match operation:
            case Get(key):
                return result is UNKNOWN or result == content.get(key), state
            case ListAll():
                return result is UNKNOWN or result == tuple(sorted(content.items())), state
            case Put(key, value):
                changes = ((key, value),)
            case Delete(key):
                changes = ((key, None),)
            case PutMany(many):
                changes = many
            case Extend(key, value):
                changes = ((key, content.get(key, b"") + value),)
        for key, new in changes:
            if new is None:
                content.pop(key, None)
            else:
                content[key] = new
        return True, frozenset(content.items())


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
