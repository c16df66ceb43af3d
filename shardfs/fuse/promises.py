"""What a mount has promised and when, as marks in a recording.

Role: Observer is what tables and writeback tell while they work, when somebody wants to know.
PromiseRecorder is the observer that writes it down: names as they change, and for each fsync and
sync that has returned, what it promised.

Invariants:
    I1. A change is marked in the critical section that makes it visible, so before any request
        to the device that carries it; a promise in the one in which the call returns.
    I2. A promise of content names the content that the file had when the call began, and is made
        only if the file was not changed until the call returned.
    I3. A promise of content holds until the file is marked as changed. A promise of names counts
        the changes of names that were applied when the call began, or in an fsync when its file
        or directory was changed last.
    I4. A file that a rename puts in the place of another has, wherever that change of names is
        found, the content that it had when the rename began: never an empty file.
    I5. Decoding any bytes returns a mark or raises CorruptionError, nothing else.

Not here: the recording itself (engine/recording.py), checking (checking/recordings.py).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

import xxhash

from shardfs.engine.layout import Bytes, Table
from shardfs.errors import CorruptionError, ShardfsError
from shardfs.fuse.records import Entry
from shardfs.limits import MIB

_log = logging.getLogger(__name__)

_READ_BYTES: Final = 1 * MIB

Read = Callable[[int, int, int], Awaitable[Bytes]]
"""(inode number, offset, length) to the bytes of a file as applications see them."""


class Expectation(Protocol):
    """What a call will have promised if it returns."""

    def kept(self) -> None:
        """The call returns now: all of it is durable."""

    def given(self) -> AbstractContextManager[None]:
        """Names that change within the context bring this content with them."""


class Observer(Protocol):
    """Is told what happens to names and contents, and what is promised of them."""

    def names_changed(self, entries: Mapping[tuple[int, bytes], Entry | None]) -> None:
        """These names (directory, name) now stand for these entries, all at once."""

    def content_changed(self, ino: int) -> None:
        """The file's bytes or size are no longer what they were."""

    def written(self, ino: int) -> None:
        """The same, and the file will go to the store behind all names that have changed by now."""

    async def expect(self, ino: int | None, read: Read | None) -> Expectation:
        """A call begins that makes a file or directory durable, and the names as they were when
        it was changed last (None: all names as they are now).

        Args:
            read: reads that file, or every file, whose content is made durable too; None: none is.
        """


# --- marks ----------------------------------------------------------------------------------------


class MarkKind(IntEnum):
    """What a mark says. Stored: never renumber."""

    NAMES = 1
    CHANGED = 2
    PROMISE = 3
    GIVEN = 4


NAMES_MARK: Final = Table(
    "names mark",
    (
        ("mark_kind", "B", "MarkKind"),
        ("count", "I", "names that follow; they changed together"),
    ),
)
NAME: Final = Table(
    "name",
    (
        ("parent", "Q", "the directory's inode number"),
        ("ino", "Q", "what the name stands for; 0: nothing any more"),
        ("name_bytes", "H", "length of the name that follows"),
    ),
)
CHANGED_MARK: Final = Table(
    "changed mark",
    (
        ("mark_kind", "B", "MarkKind"),
        ("ino", "Q", "the file whose content is no longer what was promised"),
    ),
)
PROMISE_MARK: Final = Table(
    "promise mark",
    (
        ("mark_kind", "B", "MarkKind"),
        ("names", "Q", "names marks, from the first on, that are promised (GIVEN: may be found)"),
        ("ino", "Q", "a file whose content is promised (GIVEN: if they are found); 0: none"),
        ("size", "Q", "its length in bytes"),
        ("digest", "Q", "xxh3-64 of its bytes"),
    ),
)
TABLES: Final = (NAMES_MARK, NAME, CHANGED_MARK, PROMISE_MARK)


class NamesChanged(NamedTuple):
    """Names (directory, name, inode number or 0) that changed together."""

    names: tuple[tuple[int, bytes, int], ...]


class ContentChanged(NamedTuple):
    """The file may be found with another content from now on."""

    ino: int


class Promised(NamedTuple):
    """The first `names` changes of names are durable, and so is this content, if `ino` is not 0.

    is_given: neither need be; but where those changes are found, the content is.
    """

    names: int
    ino: int
    size: int
    digest: int
    is_given: bool = False


Said = NamesChanged | ContentChanged | Promised


def encode_mark(said: Said) -> bytes:
    """A mark's bytes."""
    match said:
        case NamesChanged():
            parts = [NAMES_MARK.pack(MarkKind.NAMES, len(said.names))]
            for parent, name, ino in said.names:
                parts += [NAME.pack(parent, ino, len(name)), name]
            return b"".join(parts)
        case ContentChanged():
            return CHANGED_MARK.pack(MarkKind.CHANGED, said.ino)
        case Promised():
            kind = MarkKind.GIVEN if said.is_given else MarkKind.PROMISE
            return PROMISE_MARK.pack(kind, said.names, said.ino, said.size, said.digest)


def decode_mark(data: bytes) -> Said:
    """What a mark says.

    Raises:
        CorruptionError: it is none.
    """
    kind = data[0] if data else 0
    if kind == MarkKind.NAMES:
        return _decode_names(data)
    if kind == MarkKind.CHANGED and len(data) == CHANGED_MARK.size:
        return ContentChanged(CHANGED_MARK.unpack(data)[1])
    if kind in (MarkKind.PROMISE, MarkKind.GIVEN) and len(data) == PROMISE_MARK.size:
        _, names, ino, size, digest = PROMISE_MARK.unpack(data)
        return Promised(names, ino, size, digest, is_given=kind == MarkKind.GIVEN)
    raise CorruptionError(f"a mark of kind {kind} with {len(data)} bytes", "recording")


def _decode_names(data: bytes) -> NamesChanged:
    _, count = NAMES_MARK.unpack(data)
    position = NAMES_MARK.size
    names = []
    for _ in range(count):
        parent, ino, length = NAME.unpack(data, position)
        position += NAME.size
        if position + length > len(data):
            raise CorruptionError("a name is cut short", "recording")
        names.append((parent, data[position : position + length], ino))
        position += length
    if position != len(data):
        raise CorruptionError("bytes behind the last name", "recording")
    return NamesChanged(tuple(names))


# --- recording ------------------------------------------------------------------------------------


class PromiseRecorder:
    """An Observer that turns what it is told into marks.

    Args:
        mark: takes the bytes of each mark, in order.
    """

    def __init__(self, mark: Callable[[bytes], None]) -> None:
        self._mark = mark
        self.names_count = 0
        self._versions: dict[int, int] = {}
        self._promised: set[int] = set()
        self._unpromised: dict[int, None] = {}
        self._given: dict[int, tuple[int, Promised]] = {}
        self._names_at_change: dict[int, int] = {}

    def names_changed(self, entries: Mapping[tuple[int, bytes], Entry | None]) -> None:
        """See Observer."""
        if entries:
            names = [(*key, entry.ino if entry else 0) for key, entry in entries.items()]
            self._mark(encode_mark(NamesChanged(tuple(names))))
            self.names_count += 1
            for parent, _, ino in names:
                self._names_at_change[parent] = self._names_at_change[ino] = self.names_count
                self._mark_given(ino)

    def content_changed(self, ino: int) -> None:
        """See Observer."""
        self._versions[ino] = self.version(ino) + 1
        self._unpromised[ino] = None
        if ino in self._promised:
            self._promised.discard(ino)
            self._mark(encode_mark(ContentChanged(ino)))

    def written(self, ino: int) -> None:
        """See Observer."""
        self._names_at_change[ino] = self.names_count
        self.content_changed(ino)

    def _mark_given(self, ino: int) -> None:
        """A name of the file has changed: its content, as it was given, goes with it (I5)."""
        version, promise = self._given.get(ino, (-1, None))
        if promise is not None and version == self.version(ino):
            self._mark(encode_mark(promise._replace(names=self.names_count, is_given=True)))
            self._promised.add(ino)

    def version(self, ino: int) -> int:
        """Rises with every change of the file's content."""
        return self._versions.get(ino, 0)

    async def expect(self, ino: int | None, read: Read | None) -> Expectation:
        """See Observer. Of all files those are read that have changed since they were promised."""
        names = self.names_count if ino is None else self._names_at_change.get(ino, 0)
        expectation = _Expectation(self, names)
        if read is not None:
            for each in list(self._unpromised) if ino is None else [ino]:
                await expectation.add(each, read)
        return expectation

    @contextmanager
    def giving(self, contents: Sequence[tuple[int, Promised]]) -> Iterator[None]:
        """Within, a change of names brings these contents with it. Args: (version, content)."""
        for version, promise in contents:
            self._given[promise.ino] = (version, promise)
        try:
            yield
        finally:
            for _, promise in contents:
                self._given.pop(promise.ino, None)

    def keep(self, promises: Iterable[Promised]) -> None:
        """Write down what a call that returns now has promised."""
        for promise in promises:
            self._mark(encode_mark(promise))
            if promise.ino:
                self._promised.add(promise.ino)
                self._unpromised.pop(promise.ino, None)


class _Expectation:
    """Sizes and digests at the beginning of a call."""

    def __init__(self, recorder: PromiseRecorder, names: int) -> None:
        self._recorder = recorder
        self._names = names
        self._contents: list[tuple[int, Promised]] = []

    async def add(self, ino: int, read: Read) -> None:
        """Look at a file; one that cannot be read is not promised."""
        version = self._recorder.version(ino)
        size = 0
        digest = xxhash.xxh3_64()
        try:
            while data := await read(ino, size, _READ_BYTES):
                digest.update(data)
                size += len(data)
        except ShardfsError as error:
            _log.info("inode %d is not recorded as durable: %s", ino, error)
            return
        promise = Promised(self._names, ino, size, digest.intdigest())
        self._contents.append((version, promise))

    def kept(self) -> None:
        """See Expectation."""
        recorder = self._recorder
        kept = [each for version, each in self._contents if recorder.version(each.ino) == version]
        recorder.keep(kept or [Promised(self._names, 0, 0, 0)])

    def given(self) -> AbstractContextManager[None]:
        """See Expectation."""
        return self._recorder.giving(self._contents)
