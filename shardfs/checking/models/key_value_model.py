"""The specification of the key-value store: a dictionary, and what a crash may leave of it.

Role: read this first. Everything that the engine does with logs, runs, extents and flushes must
look from outside like this: `put`, `get`, `delete`, `scan` and atomic batches on a dictionary of
bytes; and after a crash, like one of the states that this model allows.

Invariants:
    I1. A batch is seen whole as soon as it is applied. Put and delete are batches of one change.
    I2. After a crash, whatever its kind and moment, the content is the state after some prefix of
        the batches, in the order applied: each is there wholly or not at all, and none without
        those before it.
    I3. That prefix holds every batch whose promise had been called persistent, and every batch
        applied before a sync, checkpoint or close began that has returned.
    I4. A call that raised has changed nothing. A batch whose call had not returned at the crash
        may be there or not, like any other.
    I5. After a fault that destroyed bytes (rot, for example) I3 does not hold. What is read even
        then is what some batch wrote to that key, or nothing, or an error: never anything else.

Not here: space, and shards as the file system sees them (store_model.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

State = dict[bytes, bytes]
Changes = Mapping[bytes, bytes | None]
"""New values by key; None deletes."""

_DIFFERENCES_NAMED_MAX = 5


class Promise(Protocol):
    """What a call hands out that changes something; engine.dependency.Dependency is one."""

    def is_persistent(self) -> bool:
        """True once the change survives a crash."""


@dataclass(slots=True)
class Applied:
    """A batch that may or may not be persistent. Without a promise its call has not returned."""

    changes: Changes
    promise: Promise | None = None


class KeyValueModel:
    """A store that cannot fail, on a disk that keeps what it should.

    Args:
        content: of the store when it was opened, all of it persistent.
    """

    def __init__(self, content: State | None = None) -> None:
        self.content: State = dict(content or {})
        self.written: dict[bytes, list[bytes]] = {}
        self._persistent: State = dict(self.content)
        self._persistent_count = 0
        self._pending: list[Applied] = []

    # --- what callers see -------------------------------------------------------------------

    def get(self, key: bytes, start: int = 0, length: int | None = None) -> bytes | None:
        """The value of a key, or a part of it; None if there is none."""
        value = self.content.get(key)
        if value is None:
            return None
        return value[start:] if length is None else value[start : start + length]

    def scan(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """Keys from `start` up to, not including, `end`, ascending, with their values."""
        return [(key, self.content[key]) for key in sorted(self.content) if start <= key < end]

    def put(self, key: bytes, value: bytes, promise: Promise | None = None) -> None:
        """Set a key to a value."""
        self.apply({key: value}, promise)

    def delete(self, key: bytes, promise: Promise | None = None) -> None:
        """Remove a key; nothing happens if there is none."""
        self.apply({key: None}, promise)

    def apply(self, changes: Changes, promise: Promise | None = None) -> Applied:
        """Make several changes at once (I1)."""
        applied = Applied(changes, promise)
        self._pending.append(applied)
        change(self.content, changes)
        for key, value in changes.items():
            if value is not None:
                self.written.setdefault(key, []).append(value)
        return applied

    @contextmanager
    def applying(self, changes: Changes) -> Iterator[Applied]:
        """The body makes these changes in the system, and notes the promise. If it raises, they
        have not been made (I4)."""
        before = dict(self.content)
        applied = self.apply(changes)
        try:
            yield applied
        except Exception:  # whatever it is, the system has not changed: I4
            self._pending.remove(applied)
            self.content = before
            raise

    # --- persistence ------------------------------------------------------------------------

    @property
    def applied_count(self) -> int:
        """Batches applied so far."""
        return self._persistent_count + len(self._pending)

    @property
    def promises(self) -> list[Promise]:
        """Those of the batches that are not known to be persistent, in order."""
        return [each.promise for each in self._pending if each.promise is not None]

    def persist(self, applied_count: int | None = None) -> None:
        """The first so many batches, by default all, have been called persistent."""
        if applied_count is None:
            applied_count = self.applied_count
        count = max(0, applied_count - self._persistent_count)
        for applied in self._pending[:count]:
            change(self._persistent, applied.changes)
        del self._pending[:count]
        self._persistent_count += count

    def ask_promises(self) -> None:
        """Takes note of every promise that is fulfilled by now."""
        for number in range(len(self._pending), 0, -1):
            promise = self._pending[number - 1].promise
            if promise is not None and promise.is_persistent():
                self.persist(self._persistent_count + number)
                return

    # --- crashes ----------------------------------------------------------------------------

    def snapshot(self) -> KeyValueModel:
        """The model as of now, for a crash at this moment: promises that the system goes on to
        fulfil do not count any more."""
        self.ask_promises()
        copy = KeyValueModel(self._persistent)
        copy._pending = [Applied(each.changes) for each in self._pending]
        copy.content = dict(self.content)
        copy.written = self.written
        return copy

    def states_after_crash(self) -> list[State]:
        """Every content that a crash now may leave (I2, I3), shortest prefix first."""
        self.ask_promises()
        states = [dict(self._persistent)]
        for applied in self._pending:
            states.append(dict(states[-1]))
            change(states[-1], applied.changes)
        return states

    def crash(self, found: State) -> None:
        """A crash has left `found`, from which the store goes on.

        Raises:
            AssertionError: it must not have.
        """
        states = self.states_after_crash()
        assert found in states, difference(found, states)
        self.restart(found)

    def restart(self, found: State) -> None:
        """Go on from this content, all of which is persistent."""
        self.content = dict(found)
        self._persistent = dict(found)
        self._pending.clear()

    def was_written(self, key: bytes, value: bytes | None) -> bool:
        """Whether a store that has lost data may answer a read like this (I5)."""
        return value is None or value in self.written.get(key, ())


def change(state: State, changes: Changes) -> None:
    """Make changes to a state."""
    for key, value in changes.items():
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value


def difference(found: State, allowed: list[State]) -> str:
    """How a content differs from the nearest of the allowed ones."""

    def differing(state: State) -> list[bytes]:
        return sorted(k for k in found.keys() | state.keys() if found.get(k) != state.get(k))

    number = min(range(len(allowed)), key=lambda each: len(differing(allowed[each])))
    keys = differing(allowed[number])[:_DIFFERENCES_NAMED_MAX]
    words = (f"{k!r} is {brief(found.get(k))}, not {brief(allowed[number].get(k))}" for k in keys)
    which = f"nearest of {len(allowed)} allowed states is {number}: " if len(allowed) > 1 else ""
    return which + "; ".join(words)


def brief(value: bytes | None) -> str:
    """A value in few words."""
    return "absent" if value is None else f"{len(value)} bytes {bytes(value[:12])!r}"
