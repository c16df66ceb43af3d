"""Who waited for another's load had to load again if the cache did not hold the value any more.

Found by the schedule explorer, shrunk to no deviation for a value larger than the cache
(1.p.983e8cccc12fbcbe) and to one for a value that another one had pushed out meanwhile
(1.pAAAB.2ba12b5f85f6d3e7): each of three readers of one tree block read the device in turn.
"""

from __future__ import annotations

import pytest
import trio

from shardfs.checking.schedule import Control, Exhaustive, check
from tests.schedules.test_engine_primitives import Shelf


@pytest.mark.parametrize(("bytes_max", "keys"), [(5, (1, 1, 1)), (10, (1, 1, 2))])
def test_one_load_serves_all_who_wait(bytes_max: int, keys: tuple[int, ...]) -> None:
    async def program(control: Control) -> None:
        shelf = Shelf(bytes_max)
        waiting = 0

        async def ask(number: int) -> None:
            nonlocal waiting
            waiting += number in shelf.loading and shelf.loading[number] > 0
            await shelf.load(number)

        async with trio.open_nursery() as nursery:
            for number in keys:
                nursery.start_soon(ask, number)
        assert shelf.loads <= len(keys) - waiting
        shelf.check_at_rest()

    assert check(program, Exhaustive(), runs_max=1000).complete
