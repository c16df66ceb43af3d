"""The hook in trio: one step of one task at a time, each chosen by a strategy.

Role: trio 0.35 with `_ALLOW_DETERMINISTIC_SCHEDULING` set sorts the runnable tasks of each pass and
calls `_r.shuffle(batch)`. A Driver stands in for `_r`: it leaves the chosen task in the batch and
puts the others back on the run queue. The kernel is asked for events only when no task can go on;
nothing that a driven program waits for comes from there. All that is private to trio, hence the
exact version in pyproject.toml, and the tests that count interleavings.

Invariants:
    I1. Choices are asked of the strategy only where there are two or more, and all are recorded.
    I2. After `fair_after` steps the task that has waited longest is chosen, unasked: a program
        that is not finished at `steps_max` then is a livelock, not the victim of a schedule.
    I3. Trio's hooks are as before when `installed` is left, however it is left.
    I4. A deadlock or livelock ends the run by cancelling it; then by lifting shields; then by
        throwing Abandoned into the tasks that are left.

Not here: making choices (strategies.py), running programs with it (explorer.py).
"""

from __future__ import annotations

import array
import gc
import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf

import trio
from trio._core import _run as trio_run
from trio._core._entry_queue import EntryQueue
from trio._core._io_epoll import EpollIOManager
from trio._core._run import CancelStatus

from shardfs.checking.schedule.findings import Finding, FindingKind, place_of, without_addresses
from shardfs.checking.schedule.strategies import Actor, ActorKind, NondeterminismError, Strategy

Task = trio.lowlevel.Task

_STEPS_BETWEEN_COLLECTIONS = 1 << 16
_STEPS_TO_DRAIN = 10_000
_DRAINS_MAX = 6


class Abandoned(BaseException):
    """Thrown into a task that will not end otherwise (I4)."""


_ASK_KERNEL = EpollIOManager.get_events

_installed: Driver | None = None


def _get_events(manager: EpollIOManager, timeout: float) -> Sequence[tuple[int, int]]:
    """Nothing comes from outside while a task can go on: one system call a step less."""
    can_go_on = trio_run.GLOBAL_RUN_CONTEXT.runner.runq
    return () if can_go_on else _ASK_KERNEL(manager, timeout)


def is_alone() -> bool:
    """Whether a checkpoint of the running task would change nothing: the run is driven, no other
    task can go on, and nothing can be cancelled. A simulated part may leave it out then."""
    if _installed is None or _installed._scopes:
        return False
    return not trio_run.GLOBAL_RUN_CONTEXT.runner.runq


class Driver:
    """Chooses every step of one run.

    Args:
        strategy: makes the choices; its `begin` has been called.
        steps_max: a run that takes more is a livelock.
        fair_after: steps after which choices are fair instead of the strategy's.
        narrated: keep a line for each step in `story` (slow).
    """

    def __init__(
        self, strategy: Strategy, steps_max: int, fair_after: int, *, narrated: bool = False
    ) -> None:
        self._strategy = strategy
        self._steps_max = steps_max
        self._fair_after = fair_after
        self._narrated = narrated
        self._actors: dict[int, Actor] = {}
        self._names: list[str] = []
        self._order = array.array("I")
        self._last: Actor | None = None
        self._scopes: list[tuple[Actor, trio.CancelScope]] = []
        self._clock: Actor | None = None
        self._attention = min(fair_after, _STEPS_BETWEEN_COLLECTIONS)
        self._fair = False
        self._draining = 0
        self._main_ended = False
        self.steps = 0
        self.choices: list[int] = []
        self.finding: Finding | None = None
        self.error: NondeterminismError | None = None
        self.story: list[str] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Drives trio runs begun within the body; no collection of garbage comes in between."""
        stand_in = random.Random(0)
        vars(stand_in)["shuffle"] = self._shuffle
        module = vars(trio_run)
        hooks = ("_ALLOW_DETERMINISTIC_SCHEDULING", "_r")
        before = {name: module[name] for name in hooks}
        global _installed
        collecting = gc.isenabled()
        gc.disable()
        _installed = self
        EpollIOManager.get_events = _get_events  # type: ignore[method-assign, assignment]  # undone below
        module.update(_ALLOW_DETERMINISTIC_SCHEDULING=True, _r=stand_in)
        try:
            yield
        finally:
            _installed = None
            EpollIOManager.get_events = _ASK_KERNEL  # type: ignore[method-assign]  # as it was
            module.update(before)
            if collecting:
                gc.enable()

    @property
    def digest(self) -> str:
        """Of everything that happened: who ran at each step, every choice, all names."""
        whole = hashlib.blake2b(digest_size=8)
        whole.update("\0".join(self._names).encode())
        whole.update(self._order.tobytes())
        whole.update(array.array("I", self.choices).tobytes())
        return whole.hexdigest()

    # --- what the program asks ------------------------------------------------------------------

    def draw(self, bound: int) -> int:
        """A number from 0 to bound - 1, as the strategy chooses."""
        if bound < 2 or self._draining:
            return 0
        try:
            choice = self._strategy.draw(bound)
        except NondeterminismError as error:
            self.error = error
            return 0
        assert 0 <= choice < bound
        self.choices.append(choice)
        return choice

    @contextmanager
    def cancellable(self, name: str) -> Iterator[trio.CancelScope]:
        """A scope that the strategy may cancel, at any step or not at all, while it is open."""
        with trio.CancelScope() as scope:
            entry = (self._new_actor(name, ActorKind.CANCELLATION), scope)
            self._scopes.append(entry)
            try:
                yield scope
            finally:
                if entry in self._scopes:
                    self._scopes.remove(entry)

    # --- what trio asks -------------------------------------------------------------------------

    def _shuffle(self, batch: list[Task]) -> None:
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
        if not batch:
            self._idle(runner)
            return
        if self.steps >= self._attention:
            self._attend(runner)
        index = 0
        if len(batch) > 1 or self._scopes:
            index = self._pick(batch)
            if index < 0:
                runner.runq.extend(batch)
                batch.clear()
                return
        task = batch[index]
        if len(batch) > 1:
            del batch[index]
            runner.runq.extend(batch)
            batch[:] = (task,)
        actor = self._actors.get(task._counter) or self._actor_of(task)
        self.steps += 1
        actor.step = self.steps
        self._order.append(actor.number)
        if actor is not self._last:
            if self._last is not None:
                self._last.is_current = False
            actor.is_current = True
            self._last = actor
        if self._narrated and actor.kind is not ActorKind.HOUSE:
            self.story.append(f"{self.steps:6}  {actor.name:24}  {place_of(task)}")
        if runner.main_task_outcome is not None and not self._main_ended:
            self._look_for_leaks(runner)
        if self.error is not None and not self._draining:
            self._drain(runner)

    def _pick(self, batch: list[Task]) -> int:
        """Index of the task that runs; -1 when something was cancelled instead."""
        actors = []
        place = -1
        for index, task in enumerate(batch):
            actor = self._actors.get(task._counter) or self._actor_of(task)
            if actor.kind is ActorKind.HOUSE:
                return index
            if actor is self._last:
                place = index
            actors.append(actor)
        if self._fair or self._draining:
            return min(range(len(actors)), key=lambda index: actors[index].step)
        if place > 0:
            actors.insert(0, actors.pop(place))
        tasks = len(actors)
        actors += [actor for actor, _ in self._scopes]
        if len(actors) == 1:
            return 0
        index = self._choose(actors)
        if index >= tasks:
            self._cancel(index - tasks)
            return -1
        if place > 0:
            return place if index == 0 else index - (index <= place)
        return index

    def _choose(self, actors: list[Actor]) -> int:
        try:
            index = self._strategy.choose(actors)
        except NondeterminismError as error:
            self.error = error
            return 0
        assert 0 <= index < len(actors)
        self.choices.append(index)
        return index

    def _cancel(self, index: int) -> None:
        actor, scope = self._scopes.pop(index)
        self._order.append(actor.number)
        if self._narrated:
            self.story.append(f"{self.steps:6}  {actor.name:24}  is cancelled")
        scope.cancel()

    def _idle(self, runner: trio_run.Runner) -> None:
        """Nothing can run. Time passes, or a scope is cancelled, or it is a deadlock."""
        if runner.waiting_for_idle:
            return
        if runner.deadlines.next_deadline() < inf:
            if self._scopes and not self._fair and not self._draining:
                if self._clock is None:
                    self._clock = self._new_actor("clock", ActorKind.CLOCK)
                chosen = self._choose([self._clock, *(actor for actor, _ in self._scopes)])
                if chosen:
                    self._cancel(chosen - 1)
            return
        words = "; ".join(
            f"{self._actor_of(task).name} waits at {place_of(task)}" for task in self._tasks(runner)
        )
        self._report(FindingKind.DEADLOCK, f"nothing can run: {words}")
        self._drain(runner)

    def _attend(self, runner: trio_run.Runner) -> None:
        """What is due only every so many steps."""
        if self._draining:
            self._drain(runner)
            return
        if self.steps >= self._steps_max:
            self._report(FindingKind.LIVELOCK, f"not finished after {self.steps} steps")
            self._drain(runner)
            return
        self._fair = self.steps >= self._fair_after
        if self.steps % _STEPS_BETWEEN_COLLECTIONS == 0:
            gc.collect()
            alive = {task._counter for task in runner.tasks}
            self._actors = {key: actor for key, actor in self._actors.items() if key in alive}
        following = self.steps - self.steps % _STEPS_BETWEEN_COLLECTIONS
        following += _STEPS_BETWEEN_COLLECTIONS
        bound = self._steps_max if self._fair else self._fair_after
        self._attention = min(following, bound)

    def _look_for_leaks(self, runner: trio_run.Runner) -> None:
        self._main_ended = True
        names = [self._actor_of(task).name for task in self._tasks(runner)]
        if names and not self._draining:
            listed = ", ".join(names)
            self._report(FindingKind.LEAKED_TASK, f"the program ended before {listed}")

    # --- ending a run that does not end by itself -----------------------------------------------

    def _report(self, kind: FindingKind, message: str) -> None:
        if self.finding is None and not self._draining:
            self.finding = Finding(kind, without_addresses(message), self.steps)

    def _drain(self, runner: trio_run.Runner) -> None:
        """Presses the run to its end; harder each time (I4)."""
        self._draining += 1
        self._attention = self.steps + _STEPS_TO_DRAIN
        self._scopes.clear()
        if self._draining == 2:
            self._lift_shields(runner)
        elif self._draining > 2:
            self._break_tasks(runner)
        main = runner.main_task.parent_nursery if runner.main_task is not None else None
        for nursery in (main, runner.system_nursery):
            if nursery is not None:
                nursery.cancel_scope.cancel()

    def _lift_shields(self, runner: trio_run.Runner) -> None:
        for task in self._tasks(runner):
            status: CancelStatus | None = task._cancel_status
            while status is not None:
                status._scope.shield = False
                status = status._parent

    def _break_tasks(self, runner: trio_run.Runner) -> None:
        if self._draining > _DRAINS_MAX:
            raise Abandoned("a task can be ended by no means; trio's loop is left as it stands")
        for task in self._tasks(runner):
            if any(nursery.child_tasks for nursery in task.child_nurseries):
                continue
            if task._next_send_fn is None:
                runner.reschedule(task)
            task._next_send_fn = task.coro.throw
            task._next_send = Abandoned()

    # --- tasks and their names ------------------------------------------------------------------

    @staticmethod
    def _is_house(task: Task) -> bool:
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
        code = getattr(task.coro, "cr_code", None)
        return task is runner.init_task or code is EntryQueue.task.__code__

    def _tasks(self, runner: trio_run.Runner) -> list[Task]:
        alive = sorted(runner.tasks, key=lambda task: task._counter)
        return [task for task in alive if not self._is_house(task)]

    def _actor_of(self, task: Task) -> Actor:
        actor = self._actors.get(task._counter)
        if actor is None:
            kind = ActorKind.HOUSE if self._is_house(task) else ActorKind.TASK
            short = task.name.removeprefix("<").removesuffix(">").rpartition(".")[2]
            actor = self._actors[task._counter] = self._new_actor(short, kind)
        return actor

    def _new_actor(self, name: str, kind: ActorKind) -> Actor:
        number = len(self._names)
        name = without_addresses(name)
        self._names.append(name)
        shown = name if kind is ActorKind.CLOCK else f"{name}#{number}"
        return Actor(number, shown, kind)
