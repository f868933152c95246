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
