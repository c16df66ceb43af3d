"""scripts/simulate_durability.py: the chain of states against known forms and drawn lives."""

from __future__ import annotations

import math

import pytest

from scripts.simulate_durability import (
    HOURS_PER_YEAR,
    Inputs,
    chance_of_loss,
    draw_losses,
    multiplied_rate,
    nines,
)


def test_one_replica_is_lost_as_its_disk_is() -> None:
    assert chance_of_loss(1, 0.02, 100.0) == pytest.approx(-math.expm1(-0.02))


def test_two_and_three_replicas_have_the_known_forms() -> None:
    rate, repair = 0.01, 500.0
    # While a repair takes far less time than a disk lives, the terms with more rates vanish.
    assert chance_of_loss(2, rate, repair) == pytest.approx(2 * rate**2 / repair, rel=1e-3)
    assert chance_of_loss(3, rate, repair) == pytest.approx(3 * rate**3 / repair**2, rel=1e-3)


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_drawn_lives_agree(replicas: int) -> None:
    rate = multiplied_rate(replicas, 0.01, 50.0)
    worked_out = chance_of_loss(replicas, rate, 50.0)
    lives = 4000
    drawn = draw_losses(replicas, rate, 50.0, lives, seed=7)
    deviation = math.sqrt(worked_out * (1 - worked_out) / lives)
    # A life does not begin in the middle of trouble, so very few end in their first days.
    assert abs(drawn - worked_out) < 4 * deviation + 0.01


def test_outages() -> None:
    inputs = Inputs(3, 0.01, 0.0, 3600e6, 1e6, notice_hours=2.0, scrub_days=10.0)
    assert inputs.refill_hours == pytest.approx(1.0)
    assert HOURS_PER_YEAR / inputs.repair_rate == pytest.approx(2.5)
    rotting = Inputs(3, 0.0, 0.01, 3600e6, 1e6, notice_hours=2.0, scrub_days=10.0)
    assert HOURS_PER_YEAR / rotting.repair_rate == pytest.approx(120.0)


def test_eleven_nines() -> None:
    assert nines(1e-11) == pytest.approx(11.0)
