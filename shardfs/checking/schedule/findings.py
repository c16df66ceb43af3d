"""What an explored run can turn up, and how a task says where it stands.

Role: Finding, its kinds, and the words for the place a task is suspended at.

Not here: noticing deadlocks and the like (driver.py).
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import FrameType

import trio

_TRIO_FOLDER = str(Path(trio.__file__).parent)
_ADDRESS = re.compile(r"\b0x[0-9a-f]+")


class FindingKind(StrEnum):
    """Why a run is a finding."""

    DEADLOCK = "deadlock"
    LIVELOCK = "livelock"
    LEAKED_TASK = "leaked task"
    EXCEPTION = "exception"
    ASSERTION = "assertion"


@dataclass(frozen=True, slots=True)
class Finding:
    """What went wrong in a run.

    Args:
        kind: see FindingKind.
        message: in words; the same whenever the run is replayed.
        step: how many steps the run had taken.
        exception: for kinds EXCEPTION and ASSERTION, the innermost one.
    """

    kind: FindingKind
    message: str
    step: int
    exception: BaseException | None = field(default=None, compare=False)

    def is_like(self, other: Finding | None) -> bool:
        """Whether the other is taken for the same bug: same kind, same type of exception."""
        return (
            other is not None
            and self.kind is other.kind
            and type(self.exception) is type(other.exception)
        )

    def __str__(self) -> str:
        return f"{self.kind} at step {self.step}: {self.message}"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside nested groups, in order; the error itself if it is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def from_exception(error: BaseException, step: int) -> Finding:
    """The finding for what a program raised; an assertion outranks what it dragged along."""
    inner = [each for each in leaves(error) if not isinstance(each, trio.Cancelled)] or [error]
    first = next((each for each in inner if isinstance(each, AssertionError)), inner[0])
    is_assertion = isinstance(first, AssertionError)
    kind = FindingKind.ASSERTION if is_assertion else FindingKind.EXCEPTION
    message = without_addresses(f"{type(first).__name__}: {first}".rstrip(": "))
    return Finding(kind, f"{message}{_raised_at(first)}", step, first)


def without_addresses(text: str) -> str:
    """The text with memory addresses blanked, so that two runs' words compare."""
    return _ADDRESS.sub("0x…", text)


def _raised_at(error: BaseException) -> str:
    at = ""
    traceback = error.__traceback__
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_TRIO_FOLDER):
            at = _place(traceback.tb_frame, traceback.tb_lineno)
        traceback = traceback.tb_next
    return f" ({at})" if at else ""


def place_of(task: trio.lowlevel.Task) -> str:
    """Where a task is suspended: its innermost frame outside trio, and the line there."""
    frame: FrameType | None = None
    awaited: object = task.coro
    while awaited is not None:
        inner: FrameType | None = None
        for kind in ("cr", "gi", "ag"):
            inner = inner or getattr(awaited, f"{kind}_frame", None)
        if inner is not None and not inner.f_code.co_filename.startswith(_TRIO_FOLDER):
            frame = inner
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return _place(frame, frame.f_lineno) if frame is not None else "within trio"


def _place(frame: FrameType, line: int) -> str:
    path = Path(frame.f_code.co_filename)
    source = linecache.getline(str(path), line).strip()
    where = f"{path.parent.name}/{path.name}:{line} in {frame.f_code.co_name}"
    return f"{where}: {source}" if source else where
