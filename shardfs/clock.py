"""The wall clock's only door.

Role: timestamps written to files and superblocks come from here, so tests can replace them; and
how much of a processor this process has taken.

Not here: waiting and time-outs; those are trio's clock, which tests replace with MockClock.
"""

from __future__ import annotations

import time


def now_ns() -> int:
    """Nanoseconds since the Unix epoch."""
    return time.time_ns()


def processor_s() -> float:
    """Seconds of processor time that this process has taken so far."""
    return time.process_time()
