"""A short chaos; `make chaos` has the long one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.faults.chaos import Chaos, Work, differences


@pytest.mark.timeout(240)
def test_random_kills_leave_the_bytes_of_a_calm_run(tmp_path: Path) -> None:
    work = Work(rounds=4, local_epochs=10.0, handoff=False)
    chaos = Chaos(work, tmp_path, random.Random(5))
    calm = chaos.undisturbed()
    hurt = chaos.disturbed("travel", kills=5)
    assert differences(calm, hurt) == [], "moments that travel are those that stay"
    assert len(calm) == 5
    assert chaos.kills, "the run was over before anybody was killed"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_random_kills_leave_the_outer_optimizer_its_moments(tmp_path: Path) -> None:
    outer = 'planner = "full"\n[outer]\noptimizer = "nesterov"'
    work = Work(rounds=6, local_epochs=10.0, handoff=False, more=outer)
    chaos = Chaos(work, tmp_path, random.Random(6))
    calm = chaos.undisturbed()
    hurt = chaos.disturbed("local", kills=8)
    assert differences(calm, hurt) == []
    assert len(calm) == 7
    assert chaos.kills, "the run was over before anybody was killed"
