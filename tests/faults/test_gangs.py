"""Gangs of real processes that are hurt: the run goes on, and where it can, with the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.faults.chaos import differences
from tests.faults.stage import Stage

pytestmark = pytest.mark.timeout(240)

PARTS = 'planner = "structures"'
MORE = """
[structures]
gates = "partial"
candidates = 4
keep = 2
[cotrain]
rounds = 2
structures = 2
local_epochs = 2.0
[gang]
timeout_seconds = 60
"""


@contextmanager
def staged(folder: Path, return_seconds: float = 600.0) -> Iterator[Stage]:
    """A search of one round, and two rounds of co-training."""
    folder.mkdir(exist_ok=True)
    stage = Stage(folder, 1, parts=PARTS, more=MORE, return_seconds=return_seconds)
    with closing(stage.cluster):
        stage.cluster.coordinator()
        for name in ("a", "b"):
            stage.cluster.node(name)
        yield stage


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of a run that nobody disturbs."""
    with staged(tmp_path_factory.mktemp("calm")) as stage:
        weights = stage.end()
        said = stage.cluster.log("coordinator")
        assert "gang r1-g1: a, b, over gloo" in said or "gang r1-g1: b, a, over gloo" in said
        assert len(weights) == 4
        assert stage.cluster.summary()["phases"][1]["name"] == "cotrain"  # type: ignore[index]
        return weights


def hold_in_gang(stage: Stage) -> None:
    """Both nodes stand before the first step of their first round in a gang."""
    stage.cluster.until("coordinator", "base 1:")
    stage.close_gate("worker-train")
    stage.reached("worker-train", 2)


def test_a_member_that_is_killed_and_comes_back_leaves_no_trace(
    tmp_path: Path, calm: dict[str, bytes]
) -> None:
    with staged(tmp_path) as stage:
        hold_in_gang(stage)
        stage.cluster.kill("b")
        stage.open_gate("worker-train")
        stage.cluster.until("coordinator", "the gang of node a broke: the gang's members could not")
        stage.cluster.node("b")
        assert differences(calm, stage.end()) == []
        assert "-g2 meets at" in stage.cluster.log("coordinator")


@pytest.mark.long
def test_a_members_worker_that_dies_leaves_no_trace(tmp_path: Path, calm: dict[str, bytes]) -> None:
    with staged(tmp_path) as stage:
        hold_in_gang(stage)
        stage.kill_worker("a")
        stage.open_gate("worker-train")
        assert differences(calm, stage.end()) == []
        assert "node a failed assignment" in stage.cluster.log("coordinator")


def test_a_coordinator_that_dies_meanwhile_lets_the_gang_go_on(
    tmp_path: Path, calm: dict[str, bytes]
) -> None:
    with staged(tmp_path) as stage:
        hold_in_gang(stage)
        stage.restart_coordinator()
        for name in "ab":
            stage.cluster.until(name, "is under way already; going on")
        stage.open_gate("worker-train")
        assert differences(calm, stage.end()) == []


def test_without_a_member_that_stays_away_the_others_go_on(tmp_path: Path) -> None:
    with staged(tmp_path, return_seconds=1.0) as stage:
        hold_in_gang(stage)
        stage.cluster.kill("b")
        stage.open_gate("worker-train")
        assert len(stage.end()) == 4
        said = stage.cluster.log("coordinator")
        assert "gang r1-g2: a, over gloo" in said
        assert "round 2 closed without part 1" in said
