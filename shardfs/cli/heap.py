"""The heap of a process that serves: neither the collector nor the kernel holds requests up.

Role: objects go when nothing refers to them any more; the collector only looks for those that
refer to each other in a circle. A full search looks at every object there is, in one go, and
Python begins one whenever there are a quarter more of them: with caches that grow that is a stop
of some hundred milliseconds, at any moment. There is hardly anything to be found (the server's
tasks and records form no circles), so young objects are searched a few at a time, and all of them
only when nothing is going on.

Buffers of a megabyte come and go with each large request. The C library would give their memory
back and ask for it again, and each page of it is a fault and is filled with zeros: that takes
longer than copying into it. So some free memory is kept while there is something to do.

Invariants:
    I1. A search that comes by itself looks at no more than about limits.YOUNG_OBJECTS_MAX objects.
    I2. All are searched as soon as the process is idle, at most once in FULL_SEARCH_S; on a
        process that is never idle, once in FULL_SEARCH_BUSY_S: what nobody refers to is bounded.
    I3. At most KEPT_BYTES_MAX that are free at the heap's end are kept, and nothing when idle.

Not here: sizes of caches (limits.py).
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from shardfs import clock, limits

FULL_SEARCH_S: Final = 3600.0
FULL_SEARCH_BUSY_S: Final = 24 * 3600.0
KEPT_BYTES_MAX: Final = limits.DIRTY_BYTES_MAX
_LOOK_INTERVAL_S: Final = 60.0
_IDLE_SHARE: Final = 0.01
"""A process that takes less of a processor than this is idle."""
_GENERATIONS: Final = 4
_NEVER: Final = (1 << 31) - 1
# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MAPPED_BYTES_MIN: Final = 8 * limits.MIB


def keep_freed_memory() -> None:
    """Have the C library keep the memory of large buffers for the next ones (I3)."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # musl has none, and does not need it
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
        library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES_MIN)
        library.mallopt(_M_ARENA_MAX, 1)  # what one thread frees is there for all


def give_memory_back() -> None:
    """Let the kernel have what is free."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@contextmanager
def short_pauses() -> Iterator[None]:
    """While the body runs the collector searches young objects only, few at a time (I1)."""
    before = gc.get_threshold()
    # What is there now, modules above all, stays as long as the process: it is not looked at again.
    gc.collect()
    gc.freeze()
    # The second generation is searched together with the first, when that has been so often.
    gc.set_threshold(limits.YOUNG_OBJECTS_MAX // (_GENERATIONS + 1), _GENERATIONS - 1, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def keep_pauses_short() -> None:
    """Serve with short pauses, and search everything when nothing is going on (I2); for ever."""
    with short_pauses():
        searched_at = trio.current_time()
        while True:
            used_s = clock.processor_s()
            await trio.sleep(_LOOK_INTERVAL_S)
            is_idle = clock.processor_s() - used_s < _IDLE_SHARE * _LOOK_INTERVAL_S
            if is_idle:
                give_memory_back()
            wanted_s = FULL_SEARCH_S if is_idle else FULL_SEARCH_BUSY_S
            if trio.current_time() - searched_at >= wanted_s:
                gc.collect()
                searched_at = trio.current_time()
