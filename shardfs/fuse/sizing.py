"""Requests that change a store's size, or tell its device what is free.

Role: answers, for the command line, what engine/resizing.py and shrinking.py do; one conversation
about one open store, like inspection.py. The requests:

    grow           size           use more of the device: `size` bytes, or (null) all of it
    shrink-begin   size           begin to make the store smaller; {"total_bytes"}
    shrink-more                   a step of that: {"total_bytes", "left_bytes", "result"}, result
                                  null until it is done
    trim                          discard what is free; {"discarded_bytes"}

Invariants:
    I1. A shrink ends with its conversation: done, or given up with the store at its old size.

Not here: what each of them does (engine/resizing.py, shrinking.py), how requests travel
(control.py).
"""

from __future__ import annotations

from dataclasses import asdict

import trio

from shardfs.engine.resizing import Resized, grow, trim
from shardfs.engine.shrinking import Shrinking
from shardfs.engine.store import Store
from shardfs.errors import UsageError
from shardfs.fuse.requests import Answer, Handlers, number_of


class Sizing:
    """One conversation about the size of one store.

    Args:
        store: open for writing.

    handlers: what answers each request.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shrinking: Shrinking | None = None
        self.handlers: Handlers = {
            "grow": self._grow,
            "shrink-begin": self._begin,
            "shrink-more": self._more,
            "trim": self._trim,
        }

    async def aclose(self) -> None:
        """Gives up a shrink that is under way (I1)."""
        await trio.lowlevel.checkpoint()
        if self._shrinking is not None:
            self._shrinking.abandon()
            self._shrinking = None

    async def _grow(self, request: Answer) -> Answer:
        wanted = None if request.get("size") is None else number_of(request, "size")
        return _facts(await grow(self._store, wanted))

    async def _begin(self, request: Answer) -> Answer:
        await self.aclose()
        # What was deleted a moment ago shall count, so that nobody is refused for it.
        await self._store.sync()
        self._shrinking = Shrinking(self._store, number_of(request, "size"))
        return {"total_bytes": self._shrinking.total_bytes}

    async def _more(self, _request: Answer) -> Answer:
        if self._shrinking is None:
            raise UsageError("no shrink has been begun")
        try:
            progress = await self._shrinking.step()
        except BaseException:  # cancelled too: what was withheld must be handed back
            self._shrinking.abandon()
            self._shrinking = None
            raise
        answer: Answer = {
            "total_bytes": progress.total_bytes,
            "left_bytes": progress.left_bytes,
            "result": None,
        }
        if progress.result is not None:
            self._shrinking = None
            answer["result"] = _facts(progress.result)
        return answer

    async def _trim(self, _request: Answer) -> Answer:
        return {"discarded_bytes": await trim(self._store)}


def _facts(resized: Resized) -> Answer:
    return asdict(resized)
