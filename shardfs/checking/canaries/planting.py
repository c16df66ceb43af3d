"""Plants a mistake: a few words of a function's source replaced, for as long as a context lasts.

Role: an Edit names a function, words of its source, and what stands there instead. The function is
compiled anew from the changed source and given the new code in place, so that every module that
has imported it runs the mistake. A Setting gives a limit another value, where a mistake shows only
at sizes that a quick check does not reach.

Invariants:
    I1. The words are found exactly once in the function, or planting raises: a mutant never
        silently mutates nothing after shardfs has changed.
    I2. After the context the functions and limits are as before, whatever happened inside.

Not here: which mistakes there are (the modules beside this one), finding them (hunting.py).
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

_FLAGS = __future__.annotations.compiler_flag


class PlantingError(AssertionError):
    """The place where a mistake is to be planted is not there."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Words of a function, and others in their place.

    Args:
        function: a function or method; a class method or context manager as it is defined.
        old: words that occur once in its source. Further lines begin at the first line's
            indentation.
        new: what replaces them, likewise.
    """

    function: Callable[..., Any]
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A limit with another value, harmless in itself.

    Args:
        module: where it is looked up.
        name: of the limit.
        value: for as long as the mistake is planted.
    """

    module: ModuleType
    name: str
    value: int


Change = Edit | Setting


@contextmanager
def planted(changes: Sequence[Change]) -> Iterator[None]:
    """The changes are in force while the body runs.

    Raises:
        PlantingError: a function does not read as an Edit says, or a limit is not there.
    """
    edits: dict[FunctionType, list[Edit]] = {}
    for change in changes:
        if isinstance(change, Edit):
            edits.setdefault(_plain(change.function), []).append(change)
    codes = {function: _edited(function, each) for function, each in edits.items()}
    with ExitStack() as stack:
        for function, code in codes.items():
            stack.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = code
        for change in changes:
            if isinstance(change, Setting):
                if not hasattr(change.module, change.name):
                    raise PlantingError(f"{change.module.__name__} has no {change.name}")
                old = getattr(change.module, change.name)
                stack.callback(setattr, change.module, change.name, old)
                setattr(change.module, change.name, change.value)
        yield


def _plain(function: Callable[..., Any]) -> FunctionType:
    plain = inspect.unwrap(getattr(function, "__func__", function))
    if not isinstance(plain, FunctionType):
        raise PlantingError(f"{function!r} is no function of Python's")
    return plain


def _edited(function: FunctionType, edits: Sequence[Edit]) -> CodeType:
    """The function's code with all edits made."""
    lines, first_line = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines))
    for edit in edits:
        source = _replaced(source, edit, function.__qualname__)
    # Line numbers as in the file, so that findings name nearly the right place.
    source = "\n" * (first_line - 1) + source
    module = compile(source, function.__code__.co_filename, "exec", flags=_FLAGS, dont_inherit=True)
    code = next(
        each
        for each in module.co_consts
        if isinstance(each, CodeType) and each.co_name == function.__name__
    )
    if code.co_freevars != function.__code__.co_freevars:
        raise PlantingError(f"{function.__qualname__} uses names of a function around it")
    return code.replace(co_qualname=function.__code__.co_qualname)


def _replaced(source: str, edit: Edit, where: str) -> str:
    first_line = edit.old.partition("\n")[0]
    found = []
    at = source.find(first_line)
    while at >= 0:
        line = source[source.rfind("\n", 0, at) + 1 : at]
        indentation = "\n" + " " * (len(line) - len(line.lstrip(" ")))
        old, new = (text.replace("\n", indentation) for text in (edit.old, edit.new))
        if source.startswith(old, at):
            found.append(source[:at] + new + source[at + len(old) :])
        at = source.find(first_line, at + 1)
    if len(found) != 1:
        raise PlantingError(f"{where} has {len(found)} times, not once: {edit.old!r}")
    return found[0]
