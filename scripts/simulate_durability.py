"""How likely an object is to be lost in a year, for a cluster that keeps replicas on shardfs disks.

Role: one object with its replicas on different disks. A disk fails whole; a single replica rots. A
replica that is gone is found out and made again from another; the object is lost when none is left
at one moment. The chance is far too small to be seen by drawing it directly, so it is worked out
twice: exactly, from the rates (a chain of states, as disk arrays have been modelled since Gibson,
Redundant Disk Arrays, 1992, chapter 5), and by drawing lives with the rates of loss multiplied
until enough of them end, to show that the chain describes what it is meant to.

Independent failures are assumed. A fire, a bad batch of disks, an operator or a bug takes several
replicas at once, and is not in these figures.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import asdict, dataclass
from typing import Final

HOURS_PER_YEAR: Final = 8766.0
LIVES: Final = 20_000
LOSSES_WANTED: Final = 0.2
"""The rates are multiplied until about this part of the lives ends within a year."""


@dataclass(frozen=True)
class Inputs:
    """What the answer depends on; every one is measured, or taken from elsewhere.

    replicas: of each object, on disks that fail independently.
    annual_failure_rate: whole disks lost, of all disks, a year.
    rot_rate: the part of replicas that rot on a disk that lives, a year.
    disk_bytes: live data on a disk.
    refill_bytes_s: how fast one lost disk's replicas are made again, by all disks together.
    notice_hours: from the loss of a disk to the start of refilling.
    scrub_days: how long a scrub of a disk takes; rot is found after half of that on average.
    """

    replicas: int
    annual_failure_rate: float
    rot_rate: float
    disk_bytes: float
    refill_bytes_s: float
    notice_hours: float
    scrub_days: float

    @property
    def refill_hours(self) -> float:
        """From the start of refilling to its end."""
        return self.disk_bytes / self.refill_bytes_s / 3600

    @property
    def disk_outage_hours(self) -> float:
        """How long an object has one replica less after a disk was lost: half of the refilling,
        on average, and all of the time before it."""
        return self.notice_hours + self.refill_hours / 2

    @property
    def rot_outage_hours(self) -> float:
        """The same after one replica rotted."""
        return self.scrub_days * 24 / 2

    @property
    def loss_rate(self) -> float:
        """Replicas lost of those that live, a year."""
        return self.annual_failure_rate + self.rot_rate

    @property
    def repair_rate(self) -> float:
        """Lost replicas made again, a year."""
        outage = (
            self.annual_failure_rate * self.disk_outage_hours
            + self.rot_rate * self.rot_outage_hours
        ) / self.loss_rate
        return HOURS_PER_YEAR / outage


def chance_of_loss(
    replicas: int, loss_rate: float, repair_rate: float, years: float = 1.0
) -> float:
    """The chance that none of an object's replicas is left at some moment of `years`.

    The expected time until that, from all replicas present, is summed over the states with k
    replicas left: T(k -> k-1) = 1/(k l) + (n-k) r/(k l) T(k+1 -> k). Far from certainty the
    chance is the time over that.
    """
    step = 0.0  # expected time from k + 1 replicas down to k
    whole = 0.0
    for left in range(replicas, 0, -1):
        leave = left * loss_rate
        step = 1 / leave + (replicas - left) * repair_rate / leave * step
        whole += step
    return -math.expm1(-years / whole)


def draw_losses(
    replicas: int, loss_rate: float, repair_rate: float, lives: int, seed: int
) -> float:
    """The part of `lives` in which the object is lost within a year."""
    chooser = random.Random(seed)
    lost = 0
    for _ in range(lives):
        left, year = replicas, 0.0
        while left:
            down, up = left * loss_rate, (replicas - left) * repair_rate
            year += chooser.expovariate(down + up)
            if year > 1:
                break
            left += 1 if chooser.random() * (down + up) >= down else -1
        lost += not left
    return lost / lives


def multiplied_rate(replicas: int, loss_rate: float, repair_rate: float) -> float:
    """A rate of loss with which about LOSSES_WANTED of the lives end within a year."""
    while chance_of_loss(replicas, loss_rate, repair_rate) < LOSSES_WANTED:
        loss_rate *= 1.1
    return loss_rate


def nines(chance: float) -> float:
    """A chance of loss as a number of nines: 1e-11 is eleven."""
    return -math.log10(chance)


def answer(inputs: Inputs, lives: int, seed: int) -> dict[str, float]:
    """The figures that are printed."""
    chance = chance_of_loss(inputs.replicas, inputs.loss_rate, inputs.repair_rate)
    high = multiplied_rate(inputs.replicas, inputs.loss_rate, inputs.repair_rate)
    return {
        "refill_hours": inputs.refill_hours,
        "outage_hours": HOURS_PER_YEAR / inputs.repair_rate,
        "chance_a_year": chance,
        "nines": nines(chance),
        "check_rate": high,
        "check_worked_out": chance_of_loss(inputs.replicas, high, inputs.repair_rate),
        "check_drawn": draw_losses(inputs.replicas, high, inputs.repair_rate, lives, seed),
    }


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--afr", type=float, default=0.014, help="disks lost a year, of all")
    parser.add_argument("--rot", type=float, default=1e-4, help="replicas that rot a year, of all")
    parser.add_argument("--disk-tb", type=float, default=16.0, help="live data on a disk")
    parser.add_argument("--refill-mb-s", type=float, default=100.0, help="of a lost disk")
    parser.add_argument("--notice-hours", type=float, default=1.0)
    parser.add_argument("--scrub-days", type=float, default=14.0)
    parser.add_argument("--lives", type=int, default=LIVES, help="how many are drawn to check")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Print the answer."""
    chosen = read_arguments()
    inputs = Inputs(
        chosen.replicas,
        chosen.afr,
        chosen.rot,
        chosen.disk_tb * 1e12,
        chosen.refill_mb_s * 1e6,
        chosen.notice_hours,
        chosen.scrub_days,
    )
    figures = answer(inputs, chosen.lives, chosen.seed)
    if chosen.json:
        print(json.dumps({"inputs": asdict(inputs), **figures}, indent=2))
        return
    print(f"a lost disk is refilled in   {figures['refill_hours']:.1f} h")
    print(f"a replica is missing for     {figures['outage_hours']:.1f} h on average")
    print(f"chance of loss a year        {figures['chance_a_year']:.2e}")
    print(f"nines                        {figures['nines']:.1f}")
    print(
        f"check, replicas lost {figures['check_rate']:.3g} times a year: "
        f"worked out {figures['check_worked_out']:.3f}, drawn {figures['check_drawn']:.3f}"
    )


if __name__ == "__main__":
    main()
