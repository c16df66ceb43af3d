"""How quiet the machine was while something was measured.

Role: `Canary` is asked between measurements. Each time it spins through a fixed piece of Python,
sleeps a few times, and looks at what the processors did meanwhile; `summary` says how much others
have taken away.

Not here: correcting for it. Nothing is corrected; noisy runs are told as such.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPINS = 200_000
SLEEPS = 20
SLEEP_S = 0.002
QUIET_SPIN = 1.1
"""The median spin took at most this many times the fastest."""
QUIET_BUSY = 0.1
"""While the canary slept, the processors were busy for at most this share."""


def _spin_s() -> float:
    started = time.perf_counter()
    total = 0
    for number in range(SPINS):
        total += number
    return time.perf_counter() - started


def _lateness_s() -> float:
    started = time.perf_counter()
    time.sleep(SLEEP_S)
    return time.perf_counter() - started - SLEEP_S


def _processor_ticks() -> tuple[int, int, int]:
    """(all, idle, stolen by the host) of all processors since the machine began."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), fields[3] + fields[4], fields[7]


@dataclass
class Canary:
    """Looks at the machine whenever it is asked."""

    spins_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    asleep_ticks: int = 0
    asleep_busy_ticks: int = 0
    begun: tuple[int, int, int] = field(default_factory=_processor_ticks)

    def look(self) -> None:
        """Once; takes some 60 milliseconds."""
        self.loads.append(os.getloadavg()[0])
        self.spins_s.append(_spin_s())
        ticks, idle, _ = _processor_ticks()
        self.late_s += [_lateness_s() for _ in range(SLEEPS)]
        ticks_after, idle_after, _ = _processor_ticks()
        self.asleep_ticks += ticks_after - ticks
        self.asleep_busy_ticks += ticks_after - ticks - (idle_after - idle)

    def figures(self) -> dict[str, Any]:
        """What was seen: ratios, milliseconds and shares."""
        ticks, _, stolen = _processor_ticks()
        fastest = min(self.spins_s)
        late_ms = sorted(1000 * each for each in self.late_s)
        return {
            "looks": len(self.spins_s),
            "spin_median": statistics.median(self.spins_s) / fastest,
            "spin_worst": max(self.spins_s) / fastest,
            "late_ms_median": statistics.median(late_ms),
            "late_ms_worst": late_ms[-1],
            "busy_share": self.asleep_busy_ticks / max(self.asleep_ticks, 1),
            "stolen_share": (stolen - self.begun[2]) / max(ticks - self.begun[0], 1),
            "load_first": self.loads[0],
            "load_last": self.loads[-1],
        }


def is_quiet(figures: dict[str, Any]) -> bool:
    """Others took next to nothing."""
    return bool(figures["spin_median"] <= QUIET_SPIN and figures["busy_share"] <= QUIET_BUSY)


def summary(figures: dict[str, Any]) -> str:
    """One paragraph."""
    word = "quiet" if is_quiet(figures) else "**not quiet: read no more than large ratios**"
    return (
        f"The machine was {word}. In {figures['looks']} looks between the measurements a fixed "
        f"piece of work took {figures['spin_median']:.2f} times its shortest time (median; worst "
        f"{figures['spin_worst']:.2f}), a sleep of {SLEEP_S * 1000:.0f} ms ended "
        f"{figures['late_ms_median']:.2f} ms late (worst {figures['late_ms_worst']:.1f}), others "
        f"kept the processors busy for {figures['busy_share']:.0%} of the time; "
        f"{figures['stolen_share']:.1%} of the whole run was stolen by the host. Load "
        f"{figures['load_first']:.1f} before, {figures['load_last']:.1f} after (the run itself "
        "included)."
    )
