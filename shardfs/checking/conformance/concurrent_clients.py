"""Callers of one store at the same time, and the history that their calls make.

Role: each client performs its operations one after the other, and notes when each began and
ended, and with what result. Values are made of parts, each of which says which operation wrote
it, so that a value read back is told apart from all others.

What is checked here, beside the history (concurrent_world.py):
    P1. Bytes read are whole parts, each as it was written.
    P2. Errors come only where a fault was planned; NoSpaceError also when much was written.
    P3. With background tasks, what was applied is persistent a few intervals later.

Invariants:
    I1. A key begins with the letter of its family, which says what may be at it: k anything, r
        only records, s only shards. (Batches demand to know.)
    I2. Between noting what a batch changes and applying it, nothing else runs.

Not here: which operations (concurrent_world.py), what the history must be (store_histories.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing
from itertools import pairwise
from typing import Final

import trio

from shardfs import limits
from shardfs.checking.conformance.case import Coverage, Operation
from shardfs.checking.schedule import Control
from shardfs.checking.schedule.linearizability import Call, History
from shardfs.checking.schedule.store_histories import (
    AnyOperation,
    Delete,
    Extend,
    Get,
    ListAll,
    Put,
    PutMany,
)
from shardfs.engine.dependency import Dependency
from shardfs.engine.pieces import Piece, Shard
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, NoSpaceError, ShardfsError, StaleError

KEYS: Final = (b"k0", b"k1", b"r0", b"r1", b"s0", b"s1")
BULK_KEYS: Final = KEYS[2:]
RECORD_KEYS: Final = KEYS[2:4]
FIRST_KEY, LAST_KEY = b"\0", b"\xff"
FILLER: Final = b"filler"
"""Keys that begin like this are there from the start and never change."""
RECORD_SIZES: Final = (8, 200, limits.INLINE_VALUE_BYTES_MAX)
SHARD_SIZES: Final = (257, 1000, 4050, 4096, 9000, 16 * limits.KIB, 33_000, 60_000)
_SIZES: Final = RECORD_SIZES + SHARD_SIZES
SIZES: Final = len(_SIZES)
_EXTENDED_BYTES_MAX = 96 * limits.KIB
COMMIT_INTERVAL_S: Final = 0.5
_PATIENCE = 4
"""After this many intervals, P3."""

Pairs = tuple[tuple[bytes, bytes], ...]


def part_bytes(token: int, length: int) -> bytes:
    """A part of a value: the token, again and again."""
    word = b"%d." % token
    return word * (length // len(word)) + word[: length % len(word)]


def size_of(key: bytes, number: int) -> int:
    """A size that the key's family allows."""
    sizes = {b"k": _SIZES, b"r": RECORD_SIZES, b"s": SHARD_SIZES}[key[:1]]
    return sizes[number % len(sizes)]


class Values:
    """What values consist of.

    Args:
        content: what there is at first: keys, and values by the tokens of their parts.
        lengths: of those parts, by token.

    Attributes:
        entries: what `read_all` has seen last.
    """

    def __init__(self, content: Pairs, lengths: Mapping[int, int]) -> None:
        self._lengths = dict(lengths)
        self.entries: list[tuple[bytes, bytes | Shard]] = []
        self.fillers = sum(key.startswith(FILLER) for key, _ in content)

    def part(self, token: int, length: int) -> bytes:
        """A new part."""
        self._lengths[token] = length
        return part_bytes(token, length)

    def told(self, value: bytes) -> bytes:
        """A value by the tokens of its parts, as in b"3.17." (P1)."""
        tokens = b""
        at = 0
        while at < len(value):
            word = value[at : value.find(b".", at) + 1]
            length = self._lengths.get(int(word[:-1])) if word[:-1].isdigit() else None
            assert length, f"byte {at} of a value begins no part: {value[at : at + 16]!r}"
            token = int(word[:-1])
            assert value[at : at + length] == part_bytes(token, length), f"part {token} is damaged"
            tokens += word
            at += length
        return tokens

    async def read_all(self, store: Store) -> Pairs:
        """Every key and its value by its tokens; fillers must be there, each once."""
        entries: list[tuple[bytes, bytes | Shard]] = []
        pairs = []
        with ExitStack() as stack:
            async with aclosing(store.scan(FIRST_KEY, LAST_KEY)) as scan:
                async for key, value in scan:
                    if isinstance(value, Shard):
                        stack.enter_context(store.pinned(value.pieces))
                    entries.append((key, value))
                    await trio.lowlevel.checkpoint()  # who scans may rest, and others do not
            for key, value in entries:
                if isinstance(value, Shard):
                    value = await store.read_shard(value, 0, value.length)
                pairs.append((key, self.told(value)))
        keys = [key for key, _ in pairs]
        assert all(one < other for one, other in pairwise(keys)), (
            f"the keys of a scan do not rise: {keys}"
        )
        fillers = sum(key.startswith(FILLER) for key in keys)
        assert fillers == self.fillers, f"a scan saw {fillers} of {self.fillers} keys that stay"
        self.entries = entries
        return tuple(pairs)


class Clients:
    """All callers of one open store.

    Args:
        control: of the run.
        store: open.
        content: what the store holds at first, by the tokens of its parts.
        values: what they consist of; added to.
        coverage: told of each operation.
        is_atomic: a scan of all keys takes one page, hence is of one moment (tree.I3).
        faulty: a fault is planned, so that any call may fail.
        background: the store runs its own tasks.
    """

    def __init__(
        self,
        control: Control,
        store: Store,
        content: Pairs,
        values: Values,
        coverage: Coverage,
        *,
        is_atomic: bool,
        faulty: bool,
        background: bool,
    ) -> None:
        self._control = control
        self._store = store
        self.values = values
        self._coverage = coverage
        self._is_atomic = is_atomic
        self._faulty = faulty
        self._background = background
        self._room_bytes = store.space().free_bytes
        self._written_bytes = 0
        self._promises: list[tuple[int, Dependency]] = []
        self._durable = 0
        self.history: History[AnyOperation] = History()
        first = self.history.begin(PutMany(tuple(content)))
        self.history.end(first, None)

    async def perform(self, operations: tuple[tuple[int, Operation], ...]) -> None:
        """One client's operations, each with its place in the sequence."""
        cancelled = False
        for place, operation in operations:
            if operation.name == "cancel":
                cancelled = True
                continue
            self._coverage.counts[f"operation {operation.name}"] += 1
            if cancelled:
                with self._control.cancellable(operation.name) as scope:
                    await self._one(place, operation)
                if scope.cancelled_caught:
                    self._coverage.counts[f"cancelled {operation.name}"] += 1
                cancelled = False
            else:
                await self._one(place, operation)

    @property
    def durable(self) -> int:
        """The moment before which everything that had ended is known to be durable by now."""
        for ended, dependency in self._promises:
            if dependency.is_persistent():
                self._durable = max(self._durable, ended)
        self._promises = [each for each in self._promises if each[0] > self._durable]
        return self._durable

    async def look(self) -> None:
        """List everything; a read that fails once is repeated."""
        for attempt in range(3):
            try:
                await self._list()
                return
            except ShardfsError as error:
                if not self._faulty or attempt == 2 or isinstance(error, CorruptionError):
                    raise

    # --- one operation --------------------------------------------------------------------------

    async def _one(self, place: int, operation: Operation) -> None:
        numbers = (*operation.arguments[1:], 0, 0)
        key = KEYS[numbers[0] % len(KEYS)]
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: self._get(key),
            "put": lambda: self._put(key, place, size_of(key, numbers[1])),
            "delete": lambda: self._delete(key),
            "list": self._list,
            "extend": lambda: self._extend(KEYS[4 + numbers[0] % 2], place, numbers[1]),
            "create": lambda: self._bulk(1 + numbers[0] % 15, place, numbers[1]),
            "remove": lambda: self._bulk(1 + numbers[0] % 15, None, 0),
            "sync": self._sync,
            "settle": self._settle,
            "pause": lambda: self._pause(numbers[0] % 8),
            "checkpoint": self._store.checkpoint,
            "compact": self._store.compact,
            "tidy": lambda: self._store._checkpointer.compact(garbage_share_max=0.0),
            "reclaim": self._store.reclaim,
            "gather": self._store.gather,
        }
        try:
            await work[operation.name]()
        except NoSpaceError:
            assert self._faulty or 2 * self._written_bytes > self._room_bytes, (
                f"no room after {self._written_bytes} bytes, {self._room_bytes} were free"
            )
        except ShardfsError as error:
            if not self._faulty or isinstance(error, CorruptionError | StaleError):
                raise

    async def _get(self, key: bytes) -> None:
        call = self.history.begin(Get(key))
        value = await self._store.get(key)
        self.history.end(call, None if value is None else self.values.told(value))

    async def _put(self, key: bytes, token: int, length: int) -> None:
        self._written_bytes += length
        call = self.history.begin(Put(key, b"%d." % token))
        await self._change(call, self._store.put(key, self.values.part(token, length)))

    async def _delete(self, key: bytes) -> None:
        await self._change(self.history.begin(Delete(key)), self._store.delete(key))

    async def _change(self, call: Call[AnyOperation], work: Awaitable[Dependency]) -> None:
        try:
            promise = await work
        except ShardfsError:
            call.operation = PutMany(())  # as documented: nothing was changed
            raise
        self._ended(call, promise)

    def _ended(self, call: Call[AnyOperation], promise: Dependency) -> None:
        self.history.end(call, None)
        assert call.ended is not None
        self._promises.append((call.ended, promise))

    async def _list(self) -> None:
        history = self.history
        call = history.begin(ListAll() if self._is_atomic else PutMany(()))
        looks = [] if self._is_atomic else [history.begin(Get(key)) for key in KEYS]
        found = await self.values.read_all(self._store)
        history.end(call, found)
        by_key = dict(found)
        for look in looks:
            assert isinstance(look.operation, Get)
            history.end(look, by_key.get(look.operation.key))

    # --- shards and batches ---------------------------------------------------------------------

    async def _extend(self, key: bytes, token: int, number: int) -> None:
        """Add a part at the end, again if somebody else was faster."""
        store = self._store
        length = size_of(key, number)
        self._written_bytes += length
        call = self.history.begin(PutMany(()))
        while True:
            base = await store.get_shard(key)
            await trio.lowlevel.checkpoint()
            old: tuple[Piece, ...] = base.pieces if base is not None else ()
            at = base.length if base is not None else 0
            if at + length > _EXTENDED_BYTES_MAX:
                break
            batch = store.batch()
            added = self._appended(key, at, self.values.part(token, length), number)
            batch.put_shard(key, (*old, *added), base)
            try:
                promise = store.apply(batch)
            except StaleError:
                continue
            call.operation = Extend(key, b"%d." % token)
            self._ended(call, promise)
            return
        self.history.end(call, None)

    def _appended(self, key: bytes, at: int, data: bytes, number: int) -> list[Piece]:
        """Data as one chunk, or now and then as so many that gathering them is worth it."""
        step = len(data) if number % 3 else max(1, len(data) // limits.SCATTERED_PIECES_MIN)
        pieces: list[Piece] = []
        for start in range(0, len(data), step):
            part = data[start : start + step]
            pieces += self._store.append_pieces(key, at + start, (part,))
        return pieces

    async def _bulk(self, mask: int, token: int | None, number: int) -> None:
        """Set (token given) or remove several keys at once."""
        store = self._store
        keys = [key for bit, key in enumerate(BULK_KEYS) if mask >> bit & 1]
        sizes = RECORD_SIZES if any(key[:1] == b"r" for key in keys) else SHARD_SIZES
        length = sizes[number % len(sizes)]
        if token is not None:
            self._written_bytes += length * len(keys)
        call = self.history.begin(PutMany(()))
        while True:
            bases = {key: await store.get_shard(key) for key in keys if key[:1] == b"s"}
            await trio.lowlevel.checkpoint()
            batch = store.batch(essential=token is None)
            changed: list[tuple[bytes, bytes | None]] = []
            for key in keys:
                base = bases.get(key)
                if token is not None:
                    data = self.values.part(token, length)
                    if key in bases:
                        batch.put_shard(key, store.append_pieces(key, 0, (data,)), base)
                    else:
                        batch.put(key, data)
                    changed.append((key, b"%d." % token))
                elif key not in bases:
                    batch.delete(key)
                    changed.append((key, None))
                elif base is not None:
                    batch.delete_shard(key, base)
                    changed.append((key, None))
            try:
                promise = store.apply(batch)
            except StaleError:
                continue
            call.operation = PutMany(tuple(changed))
            self._ended(call, promise)
            return

    # --- durability -----------------------------------------------------------------------------

    async def _sync(self) -> None:
        began = self.history.tick()
        await self._store.sync()
        self._durable = max(self._durable, began)

    async def _settle(self) -> None:
        """Sync the last change only."""
        if self._promises:
            ended, promise = self._promises[-1]
            await self._store.sync(promise)
            self._durable = max(self._durable, ended)

    async def _pause(self, eighths: int) -> None:
        began = self.history.tick()
        await trio.sleep(_PATIENCE * COMMIT_INTERVAL_S * (1 + eighths) / 8)
        if eighths == 7 and self._background and not self._faulty:
            waiting = [p for ended, p in self._promises if ended < began and not p.is_persistent()]
            assert not waiting, f"not persistent after {_PATIENCE} commit intervals"
