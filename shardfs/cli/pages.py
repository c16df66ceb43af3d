"""Reads lists that answers bring in pages.

Role: one way to ask for a list, whoever answers.

Not here: how answers are cut into pages (fuse/requests.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from shardfs.fuse.targets import Questions


async def pages_of(
    conversation: Questions, begin: dict[str, Any], more: str, name: str
) -> AsyncIterator[dict[str, Any]]:
    """Every item of a list.

    Args:
        begin: the request that starts it.
        more: the request for the next page.
        name: what a page calls its items.
    """
    await conversation.answer(begin)
    async for item in rest_of(conversation, more, name):
        yield item


async def rest_of(conversation: Questions, more: str, name: str) -> AsyncIterator[dict[str, Any]]:
    """The same, of a list that has been started."""
    while True:
        page = await conversation.answer({"request": more})
        for item in page[name]:
            yield item
        if page["end"]:
            return
