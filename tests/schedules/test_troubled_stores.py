"""Concurrent callers on devices that fail, are full, or are zoned (programs beside this file)."""

from __future__ import annotations

from functools import partial

import pytest

from shardfs.checking.schedule import Priorities, Program, Random, check
from tests.schedules import troubled_stores as stores

FAILURES: dict[str, Program[object]] = {
    **{
        kind: partial(stores.the_device_fails, kind=kind)
        for kind in ("read", "write", "flush", "discard")
    },
    **{
        f"{kind} in the background": partial(
            stores.the_device_fails, kind=kind, options=stores.BACKGROUND
        )
        for kind in ("write", "flush")
    },
}
OTHERS: dict[str, Program[object]] = {
    "zones": stores.clients_on_zones,
    "full": stores.the_device_is_full,
    "full, in the background": partial(stores.the_device_is_full, options=stores.BACKGROUND),
}
TOLD = pytest.mark.expected_warnings("failed: Input/output error", "is now read-only")


@pytest.mark.parametrize("name", FAILURES)
@TOLD
def test_one_request_fails(name: str) -> None:
    check(FAILURES[name], Random(seed=1), runs_max=10)
    check(FAILURES[name], Priorities(depth=3, seed=1), runs_max=10)


@pytest.mark.parametrize("name", OTHERS)
def test_zones_and_full_devices(name: str) -> None:
    check(OTHERS[name], Random(seed=1), runs_max=3)
    check(OTHERS[name], Priorities(depth=3, seed=1), runs_max=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
@TOLD
def test_one_request_fails_at_length(name: str) -> None:
    check(FAILURES[name], Random(seed=1000), runs_max=1000)
    check(FAILURES[name], Priorities(depth=4, seed=1000), runs_max=1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_zones_and_full_devices_at_length(name: str) -> None:
    check(OTHERS[name], Random(seed=1000), runs_max=200)
    check(OTHERS[name], Priorities(depth=4, seed=1000), runs_max=200)
