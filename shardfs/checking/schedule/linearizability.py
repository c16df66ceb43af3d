"""Decides whether a concurrent history could have happened one call at a time.

Role: a History notes when calls begin and end, and with what; `find_violation` looks for an order
of the calls that agrees with the order in time and with a sequential model. A call that never
ended (its task was cancelled, or it raised) may have happened, at any later time, or not.

Invariants:
    I1. A history is linearizable exactly if each of its parts is, where the parts share no state
        (Herlihy, Wing, "Linearizability", TOPLAS 1990, theorem 1): hence `part_of`.
    I2. No combination of calls done and state reached is looked at twice.
    I3. A call that only reads is taken as soon as its turn may be and it fits the state: in any
        order in which it comes later it could as well come now. One that never ended says
        nothing, and is left out.

Sources: Wing, Gong, "Testing and verifying concurrent objects", JPDC 1993; the memory of what was
tried (I2) is Lowe's, "Testing for linearizability", CCPE 2017.

Not here: models (store_histories.py has those of a key-value store).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

Operation = TypeVar("Operation")
ModelOperation = TypeVar("ModelOperation", contravariant=True)
Result = TypeVar("Result")


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Final = _Unknown()
"""The result of a call that never ended."""


@dataclass(slots=True, eq=False)
class Call(Generic[Operation]):
    """One call: `began` and `ended` are positions in the order of all beginnings and ends."""

    number: int
    operation: Operation
    began: int
    ended: int | None = None
    result: object = UNKNOWN

    def __str__(self) -> str:
        ended = "…" if self.ended is None else self.ended
        return f"[{self.began}, {ended}] {self.operation} -> {self.result}"


class Model(Protocol[ModelOperation]):
    """A sequential specification; states are values and compare as such."""

    def initial(self) -> Hashable:
        """The state before the first call."""

    def step(
        self, state: Hashable, operation: ModelOperation, result: object
    ) -> tuple[bool, Hashable]:
        """Whether the operation may give this result in this state, and the state behind it.
        UNKNOWN stands for any result."""

    def is_reading(self, operation: ModelOperation) -> bool:
        """Whether the operation changes no state whatever."""


class History(Generic[Operation]):
    """Collects the calls of one run."""

    def __init__(self) -> None:
        self.calls: list[Call[Operation]] = []
        self._time = 0

    async def record(self, operation: Operation, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do the work and note it as a call; if it raises, the call never ended."""
        call = self.begin(operation)
        result = await work()
        self.end(call, result)
        return result

    def begin(self, operation: Operation) -> Call[Operation]:
        """A call begins now."""
        call = Call(len(self.calls), operation, self.tick())
        self.calls.append(call)
        return call

    def end(self, call: Call[Operation], result: object) -> None:
        """A call ends now, with this result."""
        call.ended, call.result = self.tick(), result

    def tick(self) -> int:
        """A moment that lies between all that was noted before and all that will be."""
        self._time += 1
        return self._time


@dataclass(frozen=True, slots=True)
class Violation(Generic[Operation]):
    """Calls that fit no order.

    Args:
        part: which part of the history.
        calls: of that part, as they began.
        longest: the numbers of the calls in the longest order that agrees with the model.
    """

    part: Hashable
    calls: tuple[Call[Operation], ...]
    longest: tuple[int, ...]

    def __str__(self) -> str:
        fitting = " ".join(str(number) for number in self.longest) or "none"
        lines = [f"  {call.number:3}  {call}" for call in self.calls]
        return "\n".join(
            (f"not linearizable, part {self.part!r}; the longest order: {fitting}", *lines)
        )


def find_violation(
    calls: Iterable[Call[Operation]],
    model: Model[Operation],
    part_of: Callable[[Operation], Hashable] | None = None,
) -> Violation[Operation] | None:
    """The first part that is not linearizable, or None.

    Args:
        calls: of a history.
        model: what each part behaves like.
        part_of: the part an operation belongs to; None: there is one.
    """
    parts: dict[Hashable, list[Call[Operation]]] = {}
    for call in calls:
        part = part_of(call.operation) if part_of is not None else None
        parts.setdefault(part, []).append(call)
    for part, members in parts.items():
        longest = _Search(members, model).run()
        if longest is not None:
            return Violation(part, tuple(members), longest)
    return None


@dataclass(slots=True, eq=False)
class _Entry:
    """A beginning or an end, in a doubly linked list in the order of time."""

    at: int
    position: int
    is_end: bool
    partner: _Entry | None = None
    before: _Entry | None = None
    behind: _Entry | None = field(default=None)


class _Taken(NamedTuple):
    """A call that was put into the order: in which state, and whether nothing is to be gained by
    trying another in its place."""

    entry: _Entry
    state: Hashable
    is_free: bool


class _Search(Generic[Operation]):
    """Looks for an order of one part's calls, depth first."""

    def __init__(self, calls: list[Call[Operation]], model: Model[Operation]) -> None:
        calls = [
            call for call in calls if call.ended is not None or not model.is_reading(call.operation)
        ]
        self._calls = calls
        self._model = model
        self._outstanding = sum(call.ended is not None for call in calls)
        self._head = _Entry(-1, 0, False)
        entries = []
        for position, call in enumerate(calls):
            begin = _Entry(position, call.began, False)
            entries.append(begin)
            if call.ended is not None:
                begin.partner = _Entry(position, call.ended, True)
                entries.append(begin.partner)
        last = self._head
        for entry in sorted(entries, key=lambda entry: entry.position):
            last.behind, entry.before = entry, last
            last = entry

    def run(self) -> tuple[int, ...] | None:
        """None if there is an order; else the longest that was found."""
        state = self._model.initial()
        done = 0
        seen: set[tuple[int, Hashable]] = set()
        stack: list[_Taken] = []
        longest: tuple[int, ...] = ()
        entry = self._head.behind
        is_new = True
        while self._outstanding:
            assert entry is not None, "an end stands behind every beginning that has one"
            if is_new and (reading := self._reading(state)) is not None:
                entry, reached, is_free = reading, state, True
            elif entry.is_end:
                # This call would have to come before its end, and nothing that fits is left.
                taken = None
                while stack and (taken is None or taken.is_free):
                    taken = stack.pop()
                    done &= ~(1 << taken.entry.at)
                    self._put_back(taken.entry)
                if taken is None or taken.is_free:
                    return longest
                entry, state, is_new = taken.entry.behind, taken.state, False
                continue
            else:
                call = self._calls[entry.at]
                allowed, reached = self._model.step(state, call.operation, call.result)
                is_free = False
                if not allowed or (done | 1 << entry.at, reached) in seen:
                    entry, is_new = entry.behind, False
                    continue
            stack.append(_Taken(entry, state, is_free))
            done, state = done | 1 << entry.at, reached
            seen.add((done, state))
            self._take_out(entry)
            if len(stack) > len(longest):
                longest = tuple(self._calls[taken.entry.at].number for taken in stack)
            entry, is_new = self._head.behind, True
        return None

    def _reading(self, state: Hashable) -> _Entry | None:
        """A call whose turn it may be and that changes nothing, if there is one (I3)."""
        entry = self._head.behind
        while entry is not None and not entry.is_end:
            call = self._calls[entry.at]
            if self._model.is_reading(call.operation):
                allowed, _ = self._model.step(state, call.operation, call.result)
                if allowed:
                    return entry
            entry = entry.behind
        return None

    def _take_out(self, entry: _Entry) -> None:
        self._outstanding -= entry.partner is not None
        for each in (entry, entry.partner):
            if each is not None:
                assert each.before is not None
                each.before.behind = each.behind
                if each.behind is not None:
                    each.behind.before = each.before

    def _put_back(self, entry: _Entry) -> None:
        self._outstanding += entry.partner is not None
        for each in (entry.partner, entry):
            if each is not None:
                assert each.before is not None
                each.before.behind = each
                if each.behind is not None:
                    each.behind.before = each
