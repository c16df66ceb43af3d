"""Small trio programs with a known number of schedules, or a known bug."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from shardfs.checking.schedule import Control


async def three_tasks_of_two_steps(control: Control) -> tuple[int, ...]:
    """90 interleavings: 6! / (2! 2! 2!)."""
    seen: list[int] = []

    async def task(number: int) -> None:
        seen.append(number)
        await trio.lowlevel.checkpoint()
        seen.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(task, number)
    return tuple(seen)


async def lost_update(control: Control) -> None:
    """Two tasks add 1 each, with a checkpoint between reading and writing."""
    total = 0

    async def add() -> None:
        nonlocal total
        old = total
        await trio.lowlevel.checkpoint()
        total = old + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add)
        nursery.start_soon(add)
    assert total == 2, f"two additions of 1 made {total}"


async def locks_in_two_orders(control: Control) -> None:
    """Two tasks take two locks, each the other way round."""
    first, second = trio.Lock(), trio.Lock()

    async def take(one: trio.Lock, other: trio.Lock) -> None:
        async with one, other:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, first, second)
        nursery.start_soon(take, second, first)


async def rare_order(control: Control) -> None:
    """Fails only if one task runs through before each of twelve others begins: a bug of depth 1
    for Priorities, one in about 13 ** 6 schedules for Random."""
    ended = 0
    steps = 0

    async def other() -> None:
        nonlocal ended
        await trio.lowlevel.checkpoint()
        ended += 1

    async def hasty() -> None:
        nonlocal steps
        for _ in range(6):
            await trio.lowlevel.checkpoint()
        assert ended, "nobody else has run"

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(other)
        nursery.start_soon(hasty)


async def spin_until_told(control: Control) -> None:
    """Correct under a fair scheduler only: one task spins until the other has run."""
    told = False

    async def tell() -> None:
        nonlocal told
        await trio.lowlevel.checkpoint()
        told = True

    async def spin() -> None:
        while not told:
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(spin)
        nursery.start_soon(tell)


async def spin_for_ever(control: Control) -> None:
    """A livelock."""
    while True:
        await trio.lowlevel.checkpoint()


async def refuse_to_end(control: Control) -> None:
    """A livelock that swallows its cancellation."""
    while True:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            continue


async def wait_behind_a_shield(control: Control) -> None:
    """A deadlock that the first cancellation does not reach."""
    with trio.CancelScope(shield=True):
        await trio.Event().wait()


async def leak(control: Control) -> None:
    """Ends while a system task of its making still runs."""
    trio.lowlevel.spawn_system_task(trio.sleep_forever, name="left behind")


async def draw_badly(control: Control) -> None:
    """Fails for one draw in a hundred."""
    assert control.draw(100) != 73, "drew 73"


async def release_forgotten(control: Control) -> None:
    """Cancelled while it holds a token, it never gives it back."""
    tokens = 1

    async def use() -> None:
        nonlocal tokens
        tokens -= 1
        await trio.sleep(1)
        await trio.lowlevel.checkpoint()
        tokens += 1

    with control.cancellable("use"):
        await use()
    assert tokens == 1, "a token is gone"


async def queue_and_timers(control: Control) -> tuple[int, ...]:
    """Something of everything: channels, timers, locks, draws, cancellation, sets of names."""
    send, receive = trio.open_memory_channel[int](2)
    lock = trio.Lock()
    seen: list[int] = []

    async def produce(number: int, channel: trio.MemorySendChannel[int]) -> None:
        async with channel:
            for _ in range(1 + control.draw(3)):
                await trio.sleep(control.draw(2))
                await channel.send(number)

    async def consume() -> None:
        async for number in receive:
            async with lock:
                seen.append(number)

    with control.cancellable():
        async with trio.open_nursery() as nursery, send:
            for number in range(3):
                nursery.start_soon(produce, number, send.clone())
            nursery.start_soon(consume)
            nursery.start_soon(consume)
            await send.aclose()
    return tuple(seen)


BUGS: dict[str, Callable[[Control], Awaitable[None]]] = {
    "lost_update": lost_update,
    "locks_in_two_orders": locks_in_two_orders,
    "draw_badly": draw_badly,
    "release_forgotten": release_forgotten,
}
