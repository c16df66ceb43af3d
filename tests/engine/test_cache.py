"""The cache: bounded, one load however many ask, failures are nobody else's."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from shardfs.engine.cache import Cache

KEY = (1, 1, 0)


def loader_of(
    value: object, size: int, log: list[object] | None = None
) -> Callable[[], Awaitable[tuple[object, int]]]:
    async def load() -> tuple[object, int]:
        if log is not None:
            log.append(value)
        await trio.lowlevel.checkpoint()
        return value, size

    return load


async def test_least_recently_used_goes_first() -> None:
    cache = Cache(100)
    for number in range(4):
        await cache.load((number, 1, 0), loader_of(number, 30))
    assert cache.get((0, 1, 0)) is None
    assert cache.get((1, 1, 0)) == 1
    await cache.load((4, 1, 0), loader_of(4, 30))
    assert cache.get((1, 1, 0)) == 1, "it was used last"
    assert cache.get((2, 1, 0)) is None
    assert cache.statistics().held_bytes == 90


async def test_the_bound_holds_for_random_use() -> None:
    rng = random.Random(1)
    cache = Cache(1000)
    sizes: dict[tuple[int, int, int], int] = {}
    for _ in range(2000):
        key = (rng.randrange(40), 1, 0)
        size = sizes.setdefault(key, rng.choice((0, 1, 100, 400, 1000, 1001)))
        assert await cache.load(key, loader_of(key, size)) == key
        statistics = cache.statistics()
        held = [each for each in sizes if cache._values.get(each) is not None]
        assert statistics.held_bytes == sum(sizes[each] for each in held) <= 1000


async def test_what_is_larger_than_the_cache_is_served_and_not_kept() -> None:
    cache = Cache(10)
    assert await cache.load(KEY, loader_of("big", 11)) == "big"
    assert cache.get(KEY) is None


async def test_an_epoch_is_another_key() -> None:
    cache = Cache(100)
    await cache.load((1, 1, 0), loader_of("old", 1))
    assert await cache.load((1, 2, 0), loader_of("new", 1)) == "new"


async def test_many_who_miss_share_one_load() -> None:
    cache = Cache(100)
    log: list[object] = []
    results: list[object] = []

    async def ask() -> None:
        results.append(await cache.load(KEY, loader_of("value", 5, log)))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert results == ["value"] * 20
    assert log == ["value"]


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_failed_or_cancelled_load_leaves_the_others_to_try(cancel: bool) -> None:
    cache = Cache(100)
    started = trio.Event()
    results: list[object] = []

    async def bad() -> tuple[object, int]:
        started.set()
        await trio.testing.wait_all_tasks_blocked()
        if cancel:
            await trio.sleep_forever()
        raise ValueError

    async def first(scope: trio.CancelScope) -> None:
        with scope:
            with pytest.raises(ValueError):
                await cache.load(KEY, bad)
            results.append("failed")

    async def second() -> None:
        results.append(await cache.load(KEY, loader_of("value", 5)))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first, scope)
        await started.wait()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked(0.01)
        if cancel:
            scope.cancel()
    assert "value" in results
    assert ("failed" in results) != cancel
    assert cache.get(KEY) == "value"
