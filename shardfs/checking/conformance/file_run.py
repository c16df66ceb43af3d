"""One sequence of operations on a file system, through lives that end in remounts and crashes.

Role: opens the file system, lets the clients work, ends it, and judges what the next opening
shows.

What is checked, beside the answers of operations (file_client.py):
    C1. The store opens by itself, healthy, and the records of files fit together (fuse.fsck).
    C2. After a crash each client's tree is one that its model allows (models.file_model).
    C3. After an orderly end, after five seconds with the background's tasks, and after a sync,
        nothing can be lost: C2 knows.
    C4. At an orderly end the whole tree is as the model says, the records fit together, and,
        with the background's tasks, what was removed is gone.
    C5. After every step df(1) is what a fresh store of this size has, less what is live and set
        aside (file_space.py); what a file that was changed is told to take is what it holds; at an
        orderly end, and now and then before, so are all (file_space.py, file_trees.find_trees).
    C6. The store has a size that it was given, or, after a crash, was about to have (sizes.py).
    C7. A power cut while the file system comes up leaves what the crash before it could leave.

Not here: sequences (file_alphabet.py), stores and crashes (file_devices.py).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Sequence
from contextlib import nullcontext
from typing import Final

import trio
import trio.testing

from shardfs import limits
from shardfs.checking.conformance.case import Coverage, Operation
from shardfs.checking.conformance.file_alphabet import (
    CLIENTS_MAX,
    CRASHES,
    ENDINGS,
    SMALL,
    STORE_KINDS,
    UPKEEP_OPERATIONS,
    VARIETIES_END,
    Setup,
)
from shardfs.checking.conformance.file_client import Circumstances, FileClient
from shardfs.checking.conformance.file_devices import EXTENT_BYTES, FAULT_KINDS, Ground
from shardfs.checking.conformance.file_steps import STEPS, remove_all
from shardfs.checking.conformance.file_trees import find_trees
from shardfs.checking.models.file_model import FileModel, Found, Promise
from shardfs.checking.schedule import Control
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store
from shardfs.errors import DeviceError, ReadOnlyError
from shardfs.fuse.door import StoreDoor, behind, scan_some
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.fsck import check_files
from shardfs.fuse.keys import ORPHAN_PREFIX

_SEEDS: Final = 1 << 30
_LITTLE_BUFFERED_BYTES: Final = 64 * limits.KIB
_SECONDS_UNTIL_DURABLE: Final = 5
_ORPHANS_END: Final = behind(ORPHAN_PREFIX)
_KEYS_END: Final = b"\xff" * limits.KEY_BYTES_MAX
_HEAD_BYTES: Final = 96 + limits.FRAME_ALIGNMENT_BYTES
_HELD_EVERY: Final = 8
_WITHIN: Final = CRASHES.index("within")


def setup_of(operations: Sequence[Operation]) -> Setup:
    """What the first operation asks for; the plainest if it is no setup."""
    if not operations or operations[0].name != "setup":
        return Setup()
    store, background, clients, variety = (*operations[0].arguments, 0, 0, 0, 0)[:4]
    numbers = (store % STORE_KINDS, background % 2, clients % CLIENTS_MAX)
    return Setup(*numbers, variety % VARIETIES_END)


class FileRun:
    """A sequence under way."""

    file_system: FileSystem

    def __init__(
        self,
        control: Control,
        coverage: Coverage,
        setup: Setup,
        ground: Ground,
        operations: Sequence[Operation],
    ) -> None:
        self._control = control
        self._coverage = coverage
        self._setup = setup
        self._ground = ground
        self._operations = [each for each in operations if each.name != "setup"]
        self._next = 0
        self._models = [FileModel() for _ in range(setup.clients + 1)]
        self._clients: list[FileClient] = []
        self._circumstances = Circumstances()
        ground.watch(coverage, lambda: self._circumstances.faults > 0)
        self._steps = 0
        self._crash_again = 0
        """The power fails at this request of the next opening; 0: it does not."""
        self._crash = ""
        """How the life under way has ended; empty: it has not, or in order."""

    async def run(self) -> None:
        """All of it."""
        while await self._live():
            pass

    async def _live(self) -> bool:
        """From one opening to the next; False when there are no more operations."""
        rng = random.Random(self._control.draw(_SEEDS))
        crashed, self._crash = self._crash, ""
        if crashed and self._crash_again:
            self._ground.cut_within(self._crash_again, self._on_cut_in_recovery)
        self._crash_again = 0
        async with self._ground.open(rng.randrange(_SEEDS)) as store:
            if not self._crash:
                await self._serve(store, bool(crashed))
            else:
                store.health.make_read_only("the power is gone", expected=True)
        if self._crash:
            self._coverage.counts[f"crash {self._crash}"] += 1
            kind = rng.choice(CRASHES[:_WITHIN]) if self._crash == "within" else self._crash
            self._coverage.crash_states.add(self._ground.crash(kind, rng))
        elif self._next < len(self._operations):
            self._ground.crash("lose all", rng)  # C3: that loses nothing
        return self._next < len(self._operations) or bool(self._crash)

    async def _serve(self, store: StoreDoor, crashed: bool) -> None:
        await _require_clean(store)
        little = self._setup.background and self._setup.variety & 1
        buffered_max = _LITTLE_BUFFERED_BYTES if little else limits.DIRTY_BYTES_MAX
        file_system = self.file_system = await FileSystem.open(store, dirty_bytes_max=buffered_max)
        self._circumstances.faults = 0
        trees = await find_trees(file_system, len(self._models))
        for number, tree in enumerate(trees):
            self._models[number] = self._continued(self._models[number], tree, crashed)
        self._clients = [
            FileClient(number, model, file_system, self._circumstances)
            for number, model in enumerate(self._models)
        ]
        async with trio.open_nursery() as background:
            if self._setup.background:
                file_system.start(background)
            elif self._is_reaped:
                background.start_soon(file_system._supervise, "reaper", file_system.orphans.run)
            await self._act()
            if self._setup.background and not self._crash:
                await trio.testing.wait_all_tasks_blocked()  # the reaper has looked around
                await self._excused(file_system.orphans.drained())
            background.cancel_scope.cancel()
        if not self._crash:
            await self._end(store)
        if self._crash:
            store.health.make_read_only("the power is gone", expected=True)

    def _continued(self, model: FileModel, tree: dict[str, Found], crashed: bool) -> FileModel:
        """C2: the model after what was found."""
        if not crashed:
            model.keep(model.begin_sync_of_all())
        return model.after_crash(tree)

    async def _act(self) -> None:
        """Operations up to one that ends this life, or the last."""
        while self._next < len(self._operations) and not self._crash:
            operation = self._operations[self._next]
            if operation.name in ENDINGS:
                self._next += 1
                self._coverage.counts[f"operation {operation.name}"] += 1
                if operation.name == "remount" or self._cut_now(operation):
                    return
            elif len(self._clients) == 1:
                self._next += 1
                await self._take(operation)
            else:
                await self._act_together()

    def _cut_now(self, operation: Operation) -> bool:
        """Whether the power is cut at once, not within some later operation."""
        kind, number, self._crash_again = (*operation.arguments, 0, 0, 0)[:3]
        self._crash = CRASHES[kind % len(CRASHES)]
        if self._crash != "within":
            return True
        self._crash = ""
        if not self._ground.cut_within(1 + number, self._on_cut):
            self._crash = "subset"
        return bool(self._crash)

    def _on_cut(self) -> None:
        """The power is cut within an operation: what comes after this has not happened."""
        self._crash = "within"
        self._models = [model.copy() for model in self._models]

    def _on_cut_in_recovery(self) -> None:
        """As `_on_cut`; the power was cut before, and the file system was about to come up."""
        self._on_cut()
        self._coverage.counts["crash in recovery"] += 1

    async def _act_together(self) -> None:
        """What comes before the next ending: each client its operations, all at a time."""
        lanes: list[list[Operation]] = [[] for _ in range(len(self._clients) + 1)]
        while self._next < len(self._operations):
            operation = self._operations[self._next]
            if operation.name in ENDINGS:
                break
            self._next += 1
            number = -1
            if operation.name not in UPKEEP_OPERATIONS:
                number = (*operation.arguments, 0)[0] % len(self._clients)
            lanes[number].append(operation)
        async with trio.open_nursery() as nursery:
            for lane in lanes:
                if lane:
                    nursery.start_soon(self._take_all, lane)

    async def _take_all(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if self._crash:
                return
            await self._take(operation)

    async def _take(self, operation: Operation) -> None:
        self._coverage.counts[f"operation {operation.name}"] += 1
        try:
            if operation.name in UPKEEP_OPERATIONS:
                await self._keep_up(operation.name, *(*operation.arguments, 0, 0, 0)[:3])
                await self._check_df()
                return
            number, first, second, third = (*operation.arguments, 0, 0, 0, 0)[:4]
            client = self._clients[number % len(self._clients)]
            with client.busy() if len(self._clients) > 1 else nullcontext():
                await STEPS[operation.name](client, first, second, third, self._clients)
            await self._check_df()
        except Exception as error:
            error.add_note(f"at the operation {operation}")
            raise

    async def _keep_up(self, name: str, first: int, second: int, third: int) -> None:
        match name:
            case "fault":
                kind = FAULT_KINDS[first % len(FAULT_KINDS)]
                if self._ground.fail(kind, second, 1 + third):
                    self._circumstances.faults += 1
                    self._coverage.counts[f"fault {kind}"] += 1
            case "sleep":
                await self._sleep(1 + first)
            case "reap":
                if not self._is_reaped:
                    await self.file_system.orphans.reap_queued()
            case "sync":
                promises = [(each.model, each.promise()) for each in self._clients]
                if await self._excused(self.file_system.sync()):
                    self._keep(promises)
            case "empty":
                if len(self._clients) == 1:
                    await self._excused(self._empty())
            case _:
                await self._excused(self._ground.upkeep(name, first, second))

    @property
    def _is_reaped(self) -> bool:
        """Removed files are freed by a task: whoever finds a full device waits for it."""
        return bool(self._setup.background) or self._setup.store in SMALL

    async def _empty(self) -> None:
        """Everything is removed, and the file system is idle for a while."""
        await remove_all(self._clients[0])
        if self._is_reaped:
            await trio.testing.wait_all_tasks_blocked()
            await self.file_system.orphans.drained()
        else:
            await self.file_system.orphans._reap_leftovers()  # of a crash
            await self.file_system.orphans.reap_queued()
        await self.file_system.name_pages.write()
        await self.file_system.sync()
        await self._ground.upkeep("tidy", 0, 0)
        if not self._circumstances.faults:
            self._ground.check_emptied()

    async def _check_df(self) -> None:
        """C5, after a step."""
        self._steps += 1
        if self._circumstances.faults or self._crash:
            return
        self._ground.check_df()
        if len(self._clients) == 1 and self._steps % _HELD_EVERY == 0:
            if self._is_reaped:
                await self.file_system.orphans.drained()
            await self._ground.check_held()

    async def _sleep(self, seconds: int) -> None:
        """Time passes; with the background's tasks, what is five seconds old is durable."""
        promises = [(each.model, each.promise()) for each in self._clients]
        await trio.sleep(seconds)
        if seconds >= _SECONDS_UNTIL_DURABLE and self._setup.background:
            self._keep(promises)

    def _keep(self, promises: Sequence[tuple[FileModel, Promise]]) -> None:
        if not self._circumstances.faults:
            for model, promise in promises:
                model.keep(promise)

    async def _end(self, store: StoreDoor) -> None:
        """C3 and C4: an orderly end, after which nothing can be lost."""

        async def look_and_end() -> None:
            trees = await find_trees(self.file_system, len(self._clients))
            for client, tree in zip(self._clients, trees, strict=True):
                await client.settle_losses(tree)
                trouble = client.model.difference(tree)
                assert not trouble, f"at the end: {'; '.join(trouble[:4])}"
            await self.file_system.end()

        if not await self._excused(look_and_end()) or store.health.reason:
            assert self._circumstances.faults, f"the store is read-only: {store.health.reason}"
            self._crash = self._crash or "subset"
            return
        if not self._circumstances.faults:
            await _require_clean(store)
            self._ground.check_df()
            await self._ground.check_held()
            await self._check_space(store)
            if self._setup.background:
                marks = await scan_some(store, ORPHAN_PREFIX, _ORPHANS_END, 1)
                assert not marks, "a removed file was not freed"
        self._keep([(each.model, each.model.begin_sync_of_all()) for each in self._clients])

    async def _check_space(self, store: StoreDoor) -> None:
        """C5: what df(1) tells as taken is what the files hold, and what that needs."""
        shown = 0
        framed = 0
        async for key, value in store.scan(b"\0", _KEYS_END):
            if isinstance(value, Shard):
                shown += sum(piece.length for piece in value.pieces)
                framed += len(value.pieces) * (_HEAD_BYTES + len(key))
        taken = self._ground.fresh_bytes - store.space().free_bytes
        most = shown
        if isinstance(store, Store):
            tree_bytes = store.statistics().tree_bytes
            live = store.space_parts().live_bytes
            assert shown <= live <= shown + framed, (
                f"{live} bytes of data are live, for {shown} to {shown + framed} in files: "
                "what was overwritten or cut off must not count"
            )
            most = shown + framed + 2 * tree_bytes + EXTENT_BYTES
        assert shown <= taken <= most, f"{taken} bytes are taken, for {shown} to {most} in files"

    async def _excused(self, step: Awaitable[object]) -> bool:
        """Whether a step went well; an error must be one that a planned fault explains."""
        try:
            await step
        except (DeviceError, ReadOnlyError):
            if not self._circumstances.faults:
                raise
            return False
        return True


async def _require_clean(store: StoreDoor) -> None:
    findings = (await check_files(store)).findings
    assert not findings, f"fsck: {'; '.join(map(str, findings[:3]))}"
