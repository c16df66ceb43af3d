"""What a long command shows while it works: a bar, or a turning sign where nobody knows the end.

Role: one look for every command. `progress` for work that comes in steps, `waiting` for one request
whose end is not known.

Invariants:
    I1. Shown on a terminal only, on standard error, and taken away at the end, also at an
        interruption. Where standard error is no terminal nothing is printed.
    I2. What takes less than SHOWN_AFTER_S is not shown.

Not here: results (cli/output.py), live views (cli/top.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOWN_AFTER_S: Final = 0.4
_BAR_WIDTH: Final = 24


class Bar:
    """One line on the terminal; see `progress`."""

    def __init__(self, stack: ExitStack, text: str) -> None:
        self._stack = stack
        self._text = text
        self._begun_at = time.monotonic()
        self._is_quiet = not sys.stderr.isatty()
        self._shown: tuple[Progress, TaskID] | None = None

    def show(self, done: float, total: float | None = None, text: str | None = None) -> None:
        """So much of it is done.

        Args:
            done, total: in any one unit; no total: nobody knows how much there is.
            text: what stands behind the bar from now on.
        """
        if self._is_quiet:
            return
        if text is not None:
            self._text = text
        if self._shown is None:
            if time.monotonic() < self._begun_at + SHOWN_AFTER_S:
                return
            self._shown = self._open()
        shown, task = self._shown
        shown.update(task, completed=done, total=total or None, description=self._text)

    def _open(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=_BAR_WIDTH),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
        )
        shown = Progress(*columns, console=Console(stderr=True), transient=True)
        self._stack.enter_context(shown)
        return shown, shown.add_task(self._text, total=None)


@contextmanager
def progress(text: str) -> Iterator[Bar]:
    """A bar for the body, which says how far it is by `Bar.show`.

    Args:
        text: what is being done, such as "verifying".
    """
    with ExitStack() as stack:
        yield Bar(stack, text)


@asynccontextmanager
async def waiting(text: str) -> AsyncIterator[None]:
    """A turning sign and a text while the body waits for something of unknown length."""
    failure: Exception | None = None
    with progress(text) as bar:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_turn, bar.show)
            try:
                yield
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure  # out here, where no nursery wraps it into a group


async def _turn(show: Callable[[float], None]) -> None:
    await trio.sleep(SHOWN_AFTER_S)
    show(0)
