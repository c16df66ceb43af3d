"""What the answers to requests have in common: arguments, and lists that come in pages.

Role: reads the arguments of a request, and cuts a long list into answers of bounded length.

Invariants:
    I1. A page is about PAGE_BYTES_TARGET of JSON, and at most one item longer.
    I2. One conversation has one list under way; a new one ends it.

Not here: the requests themselves (inspection.py and the modules it names).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from shardfs import limits
from shardfs.errors import UsageError

PAGE_BYTES_TARGET: Final = 128 * limits.KIB

Answer = dict[str, Any]
Handlers = dict[str, Callable[[Answer], Awaitable[Answer]]]
"""What answers each request, by its name."""


def text_of(request: Answer, name: str) -> str:
    """An argument that is a text.

    Raises:
        UsageError: it is none.
    """
    value = request.get(name)
    if not isinstance(value, str):
        raise UsageError(f"the request needs a text {name!r}")
    return value


def number_of(request: Answer, name: str) -> int:
    """An argument that is a number from 0 to 2^63 - 1.

    Raises:
        UsageError: it is none.
    """
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise UsageError(f"the request needs a number {name!r}")
    return value


class Pages:
    """The list of one conversation that is under way."""

    def __init__(self) -> None:
        self._name = ""
        self._items: AsyncGenerator[Answer, None] | None = None

    async def begin(self, name: str, items: AsyncGenerator[Answer, None]) -> Answer:
        """Start a list; `name` is what its pages call it."""
        await self.aclose()
        self._name, self._items = name, items
        return {}

    async def more(self, name: str) -> Answer:
        """As many more items of the list of this name as fit into one answer.

        Raises:
            UsageError: no such list has been begun.
        """
        if self._items is None or self._name != name:
            raise UsageError("no list has been begun")
        items: list[Answer] = []
        size = 0
        async for item in self._items:
            items.append(item)
            size += len(json.dumps(item))
            if size >= PAGE_BYTES_TARGET:
                return {name: items, "end": False}
        self._items = None
        return {name: items, "end": True}

    async def aclose(self) -> None:
        """The list is not wanted any more."""
        if self._items is not None:
            items, self._items = self._items, None
            await items.aclose()
