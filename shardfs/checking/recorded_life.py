"""The life of a recorded device, lived again: its moments, and what was promised at each.

Role: reads the records of a recording and keeps what a power cut may leave (as a PowerCutPoint)
and what it must leave (names and contents that fsync has promised). It stops at the moments worth
a look: all others leave a state, or bind by a promise, that one of these has as well.

Invariants:
    I1. What a flush makes durable are the writes that were answered before it was asked for. A
        write in flight is neither durable nor lost; all that is unflushed may be lost.
    I2. A write that failed may be on the medium in part for ever, until one over it is durable.
    I3. A Moment does not change when the life goes on.

Moments: before a flush takes effect; after a promise; before a promise is voided; the end.

Not here: choosing moments and opening what they leave (recordings.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import xxhash

from shardfs.checking.power_cuts import Operation, PowerCutPoint, store_bytes
from shardfs.engine.recording import (
    Answer,
    Content,
    Mark,
    RecordingReader,
    Request,
    RequestKind,
)
from shardfs.fuse.promises import ContentChanged, NamesChanged, Promised, decode_mark

Names = Mapping[tuple[int, bytes], int]
"""(directory, name) to inode number."""

_KINDS = {RequestKind.WRITE: "write", RequestKind.DISCARD: "discard"}


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment of the recorded life.

    number: rises by one from moment to moment, from 0.
    what: what happens next, or has just happened, in words.
    names_promised, names_changed: how many changes of names must be found, and may be found.
    contents: promised sizes and digests by inode number, some for certain names only.
    """

    number: int
    what: str
    point: PowerCutPoint
    names_promised: int
    names_changed: int
    contents: Mapping[int, Promised]


class NameHistory:
    """Every state that the names of a file system went through, by number; 0 is the first.

    Args:
        first: the names at the beginning.
    """

    def __init__(self, first: Names) -> None:
        self._first = dict(first)
        self._changes: list[NamesChanged] = []
        self._now = dict(first)
        self._marks = [fingerprint(first)]

    def change(self, changed: NamesChanged) -> None:
        """One more state."""
        mark = self._marks[-1]
        for parent, name, ino in changed.names:
            key = (parent, name)
            if key in self._now:
                mark ^= _item_mark(key, self._now.pop(key))
            if ino:
                self._now[key] = ino
                mark ^= _item_mark(key, ino)
        self._changes.append(changed)
        self._marks.append(mark)

    def find(self, names: Names, first: int, last: int) -> int | None:
        """The number of the first state from `first` to `last` that is `names`; None: none is."""
        try:
            return self._marks.index(fingerprint(names), first, last + 1)
        except ValueError:
            return None

    def difference(self, names: Names, number: int) -> str:
        """How names differ from a state, in words; for findings."""
        state = dict(self._first)
        for changed in self._changes[:number]:
            for parent, name, ino in changed.names:
                state[parent, name] = ino
        lines = []
        for key in sorted(state.keys() | names.keys()):
            found, wanted = names.get(key, 0), state.get(key, 0)
            if found != wanted:
                lines.append(f"{key[1]!r} in directory {key[0]} is inode {found}, not {wanted}")
        return "; ".join(lines[:5]) or "no difference"


def fingerprint(names: Names) -> int:
    """The same for equal names, whatever their order; hardly ever for others."""
    mark = 0
    for key, ino in names.items():
        mark ^= _item_mark(key, ino)
    return mark


def _item_mark(key: tuple[int, bytes], ino: int) -> int:
    parent, name = key
    return xxhash.xxh3_64_intdigest(b"%d %d " % (parent, ino) + name)


class RecordedLife:
    """One pass through a recording.

    Args:
        reader: of the recording.
        history: takes the changes of names; None if they do not matter.
    """

    def __init__(self, reader: RecordingReader, history: NameHistory | None = None) -> None:
        self._reader = reader
        self._history = history
        self._pages: dict[int, bytes] = {}  # replaced by each flush, never changed in use
        self._unflushed: dict[int, Operation] = {}
        self._in_flight: set[int] = set()
        self._failed: set[int] = set()
        self._flushes: dict[int, set[int]] = {}
        self._contents: dict[int, Promised] = {}  # replaced by each change
        self._names_changed = 0
        self._names_promised = 0
        self._count = 0
        self._is_fresh = False
        self.operations = 0
        """Requests so far."""
        self.promises = 0
        """Promises so far."""
        self.has_begun = False
        """The content at the beginning is complete."""

    def moments(self) -> Iterator[Moment]:
        """Every moment, in order.

        Raises:
            CorruptionError: the recording is damaged; what came before was yielded.
        """
        for record in self._reader.records():
            match record:
                case Content():
                    store_bytes(self._pages, record.offset, bytes(record.data))
                case Request():
                    self._ask(record)
                case Answer():
                    if record.step in self._flushes and record.is_done and self._is_fresh:
                        yield self._moment(f"the end of flush {record.step}")
                    self._answer(record)
                case Mark():
                    yield from self._take_mark(record.payload)
                case _:
                    self.has_begun = True
                    yield self._moment("the beginning")
        if self.has_begun:
            yield self._moment("the end of the recording")

    def _moment(self, what: str) -> Moment:
        self._count += 1
        self._is_fresh = False
        point = PowerCutPoint(
            self.operations,
            self._pages,
            {},
            tuple(self._unflushed.values()),
            self._reader.header.sector_bytes,
            None,
            self._reader.header.device_bytes,
        )
        return Moment(
            self._count - 1,
            what,
            point,
            self._names_promised,
            self._names_changed,
            self._contents,
        )

    # --- requests

    def _ask(self, request: Request) -> None:
        self.operations += 1
        if request.kind is RequestKind.FLUSH:
            self._flushes[request.step] = self._unflushed.keys() - self._in_flight - self._failed
        elif request.kind in _KINDS and request.length:
            is_write = request.kind is RequestKind.WRITE
            data = b"".join(request.data) if is_write else bytes(request.length)
            self._unflushed[request.step] = Operation(
                request.step, _KINDS[request.kind], request.offset, request.length, data
            )
            self._in_flight.add(request.step)
            self._is_fresh = True

    def _answer(self, answer: Answer) -> None:
        covered = self._flushes.pop(answer.step, None)
        if covered is not None:
            if answer.is_done:
                self._make_durable(covered)
        elif answer.step in self._in_flight:
            self._in_flight.remove(answer.step)
            if not answer.is_done:
                self._failed.add(answer.step)

    def _make_durable(self, covered: set[int]) -> None:
        durable = [each for step, each in self._unflushed.items() if step in covered]
        if not durable:
            return
        self._pages = dict(self._pages)
        for operation in durable:
            store_bytes(self._pages, operation.offset, operation.data)
            del self._unflushed[operation.step]
            for step in [each for each in self._failed if each < operation.step]:
                if _overlap(self._unflushed[step], operation):
                    self._failed.remove(step)
                    del self._unflushed[step]

    # --- marks

    def _take_mark(self, payload: bytes) -> Iterator[Moment]:
        said = decode_mark(payload)
        match said:
            case NamesChanged():
                self._names_changed += 1
                if self._history is not None:
                    self._history.change(said)
            case Promised(is_given=True):
                held = self._contents.get(said.ino)
                # A promise without a condition says the same of the same content, and more.
                if held is None or held.is_given:
                    self._contents = {**self._contents, said.ino: said}
            case Promised():
                self.promises += 1
                self._names_promised = max(self._names_promised, said.names)
                if said.ino:
                    self._contents = {**self._contents, said.ino: said}
                yield self._moment(f"the promise of inode {said.ino or 'names'}")
            case ContentChanged():
                if self._is_fresh and said.ino in self._contents:
                    yield self._moment(f"a change of inode {said.ino}")
                self._contents = {
                    ino: promise for ino, promise in self._contents.items() if ino != said.ino
                }


def _overlap(one: Operation, other: Operation) -> bool:
    return one.offset < other.offset + other.length and other.offset < one.offset + one.length
