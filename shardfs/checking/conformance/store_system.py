"""A store on a simulated device beside its model, through lives that end in closes and crashes.

Role: a StoreSystem owns the device, the model and what is known of planned faults. A life is one
open store: operations act on it until one of them, or a planned cut, ends it; then the device of
the next life is what the ending leaves.

What is checked, beside the answers of operations (store_steps.py):
    C1.  A store opens by itself, healthy, as long as nothing destroyed bytes.
    C2.  What it holds then is allowed by the model (key_value_model.I1 to I5).
    C3.  The account of live bytes agrees with the content; where a draw says so, fsck is clean
         (not with the store's own tasks running, which change what it compares).
    C4.  A clean close makes everything persistent: every promise ever handed out is kept.
    C5.  Errors come only after a fault has struck that explains them (faults.py says which faults
         must be survived, and how), NoSpaceError only for data that do not fit (C7).
    C6.  A write or flush that failed has turned the store read-only.
    C7.  After every operation what the store says of its space is what its content takes
         (space_model.I1 to I6); after bytes were lost nobody knows that.
    C8.  What lives is moved, or a fault explains that it is not; rot does not spread.
    C9.  No run has a higher level than an older one, whatever is being merged.
    C10. The store has a size that it was given, or, after a crash, was about to have (sizes.py).

Not here: the operations, and which sequences are tried (store_world.py).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from shardfs import limits
from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.sizes import Sizes
from shardfs.checking.conformance.store_checks import (
    applied_mark,
    check_account,
    check_clean,
    read_content,
)
from shardfs.checking.conformance.store_devices import (
    EXTENT_BYTES,
    SEEDS,
    Ending,
    Geometry,
    Settings,
    device_after,
    excuses,
    formatted,
    loses_bytes,
    may_turn_read_only,
    must_turn_read_only,
)
from shardfs.checking.conformance.store_space import SpaceCheck, held_by
from shardfs.checking.models.key_value_model import KeyValueModel, State, brief, difference
from shardfs.checking.models.size_model import SizeModel
from shardfs.checking.models.space_model import SpaceModel
from shardfs.checking.power_cuts import Operation as DeviceOperation
from shardfs.checking.schedule import Control
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Locator
from shardfs.engine.reserve import reserve_extents
from shardfs.engine.store import Store
from shardfs.errors import (
    CorruptionError,
    DeviceError,
    NoSpaceError,
    ReadOnlyError,
    ShardfsError,
)

PLAIN_KEYS = (*(b"k%d" % number for number in range(11)), b"k" + b"l" * (limits.KEY_BYTES_MAX - 1))
RECORD_KEYS = tuple(b"r%d" % number for number in range(6))
SHARD_KEYS = tuple(b"s%d" % number for number in range(6))
KEYS = PLAIN_KEYS + RECORD_KEYS + SHARD_KEYS
_FSCK_EVERY = 4
_COMMIT_INTERVAL_S = 0.5
_POOL_BYTES = 64 * limits.KIB
_POOL_STEP = 61
_POOL = random.Random(0x5EED).randbytes(_POOL_BYTES + 256 * limits.KIB)


Action = Callable[["StoreSystem"], Awaitable[None]]


def many_key(number: int) -> bytes:
    """The key of one of the many values."""
    return b"f%d" % number


def space_model(geometry: Geometry) -> SpaceModel:
    """Of the space of a device with this geometry, and of values under `KEYS`."""
    count = geometry.extent_count
    return SpaceModel(count, EXTENT_BYTES, reserve_extents(count), _is_data)


def _is_data(key: bytes, length: int) -> bool:
    return key in SHARD_KEYS or (key not in RECORD_KEYS and length > limits.INLINE_VALUE_BYTES_MAX)


class StoreSystem:
    """The system and its model, from an empty store to the end of a sequence."""

    store: Store

    def __init__(
        self, control: Control, coverage: Coverage, settings: Settings, fresh: Mapping[int, int]
    ) -> None:
        self.control = control
        self.coverage = coverage
        self.settings = settings
        self.model = KeyValueModel()
        self.device = formatted(settings.geometry).power_cut()
        self.device.is_image = settings.is_image
        self.bytes_were_lost = False
        self.unread: set[bytes] = set()
        self.reads_to_fail: int | None = None
        self.ending: Ending | None = None
        self._only_rot = True
        """No earlier life has lost bytes in another way."""
        self._is_first_life = True
        self._cut_after = 0
        self._cut_kind = ""
        self._cut_again = 0, ""
        self._cut: Ending | None = None
        self._values = 0
        self.space = SpaceCheck(space_model(settings.geometry), coverage, self._is_troubled)
        self.sizes = Sizes(
            SizeModel(settings.geometry.extent_count),
            EXTENT_BYTES,
            fresh,
            coverage,
            self._is_troubled,
            self._resized,
        )
        self.rotten: list[int] = []
        """Bytes of the device."""

    async def run(self, actions: Iterator[Action]) -> None:
        """All actions, in as many lives as they end."""
        while await self._live(actions):
            pass
        self._count_faults()

    # --- for operations ---------------------------------------------------------------------

    def value(self, size: int) -> bytes:
        """Bytes that no other value has, at no place."""
        self._values += 1
        start = self._values * _POOL_STEP % _POOL_BYTES
        return (b"%d:" % self._values + _POOL[start : start + size])[:size]

    def plan_cut(
        self,
        device_operations: int,
        kind: str,
        *,
        recovery_cut: int = 0,
        recovery_kind: str = "",
    ) -> None:
        """The power fails when so many more operations have been submitted to the device."""
        if not self._cut_after and self._cut is None:
            self._cut_after = device_operations
            self._cut_kind = kind
            self._cut_again = recovery_cut, recovery_kind
            self.device.observer = self._observe

    def end(self, kind: str, *, recovery_cut: int = 0, recovery_kind: str = "") -> None:
        """This life ends, now."""
        crashed = kind != "clean"
        if crashed:
            self.space.cut()
        point = self.device.power_cut_point() if crashed else None
        model = self.model.snapshot() if crashed else self.model
        if crashed:
            self.coverage.counts["resize cut"] += self.sizes.model.is_changing
        size = self.sizes.model.snapshot()
        self.ending = Ending(kind, point, model, size, recovery_cut, recovery_kind)

    def room(self, key: bytes, wanted: int) -> AbstractContextManager[None]:
        """The body takes so many bytes of data for a key, or raises NoSpaceError, rightly."""
        return self.space.room(key, wanted, judged=not self._is_troubled())

    def expect(self, key: bytes, found: bytes | None) -> None:
        """A read has given this."""
        expected = self.model.get(key)
        if found != expected and not (key in self.unread and self.model.was_written(key, found)):
            raise AssertionError(f"{key!r} is {brief(found)}, not {brief(expected)}")

    def check_levels(self) -> None:
        """Merges under way keep the order of levels (C9)."""
        levels = [run.level for run in self.store._tree.runs]
        assert levels == sorted(levels, reverse=True), f"levels do not fall with age: {levels}"

    # --- one life ---------------------------------------------------------------------------

    async def _live(self, actions: Iterator[Action]) -> bool:
        """From an open to what ends it. False: no actions are left."""
        self.ending = None
        self.device.reseed(self.control.draw(SEEDS), self.settings.checkpoints_max)
        options = StoreOptions(
            background=self.settings.background, commit_interval_s=_COMMIT_INTERVAL_S
        )
        opened = False
        try:
            async with Store.open(self.device, options=options) as self.store:
                opened = True
                self.space.opened(self.store)
                await self._check_opened()
                await self._act_until_the_end(actions)
                if self._ends_by_crash():
                    # Nothing that happens from here on has happened.
                    self.store.health.make_read_only("the power is gone", expected=True)
        except ShardfsError as error:
            if opened:
                raise
            self._require_excused(error)
            if self.bytes_were_lost:
                return False
            self.end("kill")
        if not self._ends():
            self._check_promises()
            return False
        self._begin_anew()
        return True

    async def _act_until_the_end(self, actions: Iterator[Action]) -> None:
        while not self._ends():
            action = next(actions, None)
            if action is None:
                await self._tolerating(self._check_end())
                return
            await self._tolerating(action(self))
            self._check_health()
            self.check_levels()
            self._check_space()
            if not self.settings.background and self.store._committer.is_overdue:
                await self._tolerating(self.store.checkpoint())

    def _ends(self) -> bool:
        return self._cut is not None or self.ending is not None

    def _ends_by_crash(self) -> bool:
        return self._cut is not None or (self.ending is not None and self.ending.point is not None)

    def _observe(self, _: DeviceOperation) -> None:
        self._cut_after -= 1
        if self._cut_after == 0:
            point = self.device.power_cut_point()
            self.coverage.counts["resize cut"] += self.sizes.model.is_changing
            size = self.sizes.model.snapshot()
            model = self.model.snapshot()
            self._cut = Ending(self._cut_kind, point, model, size, *self._cut_again)
            self.space.cut()
            self.device.observer = None

    def _begin_anew(self) -> None:
        """The device and the model of the next life."""
        ending = self._cut or self.ending
        assert ending is not None
        self._cut, self.ending, self._cut_after = None, None, 0
        self._is_first_life = False
        self.coverage.counts[f"crash {ending.kind}"] += 1
        point = ending.point
        self.sizes.model = ending.size
        if point is None:
            self._check_promises()
            self.sizes.closed()
            self.model = self.model.snapshot()
            point = self.device.power_cut_point()
        else:
            self.model = ending.model
        self._count_faults()
        self.bytes_were_lost |= loses_bytes(self.device.faults.struck)
        self._only_rot &= self._has_only_rotted()
        self.device = device_after(self.device, point, ending.kind, self.control)
        if self.reads_to_fail is not None:
            self.device.fail("read", skip=self.reads_to_fail)
            self.reads_to_fail = None
        if ending.recovery_cut:
            self.plan_cut(ending.recovery_cut, ending.recovery_kind)
        if ending.kind != "clean":
            self.coverage.crash_states.add(self.device.digest())

    def _count_faults(self) -> None:
        struck = self.device.faults.struck
        self.coverage.counts.update({f"fault {name}": count for name, count in struck.items()})

    # --- checks -----------------------------------------------------------------------------

    async def _tolerating(self, work: Awaitable[object]) -> None:
        """Some work, which may fail as far as faults allow."""
        try:
            await work
        except NoSpaceError as error:
            if not (self.space.is_right(error) or self.device.faults.struck):
                raise AssertionError(f"{error}, with {self.space.figures()}") from error
        except (DeviceError, ReadOnlyError, CorruptionError) as error:
            self._require_excused(error)

    def _require_excused(self, error: ShardfsError) -> None:
        """Raises the error again, unless a fault explains it."""
        lost = self.bytes_were_lost
        if not excuses(self.device.faults.struck, error) and not (
            lost and isinstance(error, DeviceError | ReadOnlyError | CorruptionError)
        ):
            raise error

    def _check_promises(self) -> None:
        """After a close: forward progress (C4)."""
        if not self.store.health.reason:
            unkept = [each for each in self.model.promises if not each.is_persistent()]
            assert not unkept, f"a clean close leaves {len(unkept)} promises unkept"
            self.model.persist()

    def _check_health(self) -> None:
        """A store whose device failed a change takes no more of them (C6)."""
        if must_turn_read_only(self.device.faults.struck) and self.store.health.is_writable:
            raise AssertionError("the device has failed a change, and the store is still writable")

    def _is_troubled(self) -> bool:
        """What cannot be read stays where it is; an extent that cannot be reset stays unused."""
        return self.bytes_were_lost or bool(self.device.faults.struck)

    def _check_space(self) -> None:
        """What the store says of its space is right (C7)."""
        if not self.bytes_were_lost and not loses_bytes(self.device.faults.struck):
            self.space.check(self.model.content)

    def _resized(self, extent_count: int) -> None:
        """From now on the store tells its space as one of this size."""
        fresh = self.sizes.fresh[extent_count]
        self.space.model.resize(extent_count, reserve_extents(extent_count), fresh)

    async def _check_opened(self) -> None:
        self.sizes.opened(self.store, lost=self.bytes_were_lost)
        if self.bytes_were_lost:
            await self._take_what_is_left()
            return
        assert not self.store.health.reason, f"the store opened {self.store.health.reason}"
        if self._is_first_life:
            self.space.model.begin(self.space.figures())
            return
        try:
            await self._compare(crashed=True)
        except DeviceError as error:
            # A read that failed once; the next one may not.
            self._require_excused(error)
            await self._compare(crashed=True)

    async def _check_end(self) -> None:
        reason = self.store.health.reason
        if self.bytes_were_lost or may_turn_read_only(self.device.faults.struck):
            for key in sorted(self.model.written):
                await self._tolerating(self._compare_key(key))
                await self._tolerating(self._check_rot(key))
        else:
            assert not reason, f"no fault was a reason to turn read-only: {reason}"
            await self._compare()

    async def _compare(self, *, crashed: bool = False) -> None:
        """The whole content and the account."""
        applied = applied_mark(self.store)
        entries, content = await read_content(self.store)
        if crashed:
            self.model.crash(content)
            self.space.model.found(content, held_by(entries))
            self._check_space()
            self.space.check_parts()
        else:
            assert content == self.model.content, difference(content, [self.model.content])
        # Reclamation may have moved meanwhile what was read; without it nothing changes here.
        if applied_mark(self.store) == applied:
            check_account(self.store, entries)
        else:
            assert self.settings.background, "something was applied while nobody was to"
        # fsck wants a store that nothing moves under it.
        quiet = crashed and not self.settings.background
        if quiet and self.control.draw(_FSCK_EVERY) == _FSCK_EVERY - 1:
            await check_clean(self.store, self.device)

    async def _compare_key(self, key: bytes) -> None:
        self.expect(key, await self.store.get(key))

    def _has_only_rotted(self) -> bool:
        return not loses_bytes({name: 1 for name in self.device.faults.struck if name != "rot"})

    async def _check_rot(self, key: bytes) -> None:
        """Rot does not spread: data that is damaged is so where the device is (C8)."""
        if not self.rotten or not self._only_rot:
            return
        value = await self.store.get_shard(key) if key not in RECORD_KEYS else None
        for piece in value.pieces if value is not None else ():
            try:
                await self.store.read_chunk(piece.locator, 0, piece.locator.length)
            except CorruptionError:
                start = self.store.identity.extent_offset(piece.locator.extent)
                start += piece.locator.offset
                end = start + locator_bytes(piece.locator)
                nothing_else = self.device.faults.struck.keys() <= {"rot"}
                explained = any(start <= byte < end for byte in self.rotten)
                assert not nothing_else or explained or self._is_of_before(piece.locator), (
                    f"{key!r} is damaged at bytes {start} to {end - 1}, which did not rot"
                )

    def _is_of_before(self, locator: Locator) -> bool:
        """A chunk that had been moved away or given up, which a rotten delta of the log said.

        The store shows what came before that delta, and is read-only; the chunk's extent has been
        given back since. Nothing else may refer to what is in no extent any more.
        """
        is_reset = self.store._extents.at(locator.extent).epoch != locator.epoch
        return is_reset and self.store.health.reason.startswith("the delta log ends")

    async def _take_what_is_left(self) -> None:
        """After bytes were lost: what can be read was written, and the model goes on from it."""
        found: State = {}
        for key in sorted(self.model.written):
            value = self.model.get(key)
            try:
                value = await self.store.get(key)
            except (DeviceError, CorruptionError):
                self.unread.add(key)
                await self._tolerating(self._check_rot(key))
                self.coverage.counts["read of lost bytes"] += 1
            assert self.model.was_written(key, value), f"{key!r} was never {brief(value)}"
            if value is not None:
                found[key] = value
        self.model.restart(found)
