"""Kills at scripted points: each kind of process, at each stage of a round and of the hand-off.

A process is held at a stage by the gates of `gated_task`, by SIGSTOP to its peer, or is killed the
moment that a line or a file says what it does. Every run must end with the bytes of a calm one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.faults.chaos import differences
from tests.faults.stage import Stage, wait_until

from partsum.coordinator.folder import count_rounds

pytestmark = pytest.mark.timeout(240)


def hurt_coordinator(stage: Stage) -> None:
    cluster = stage.cluster
    stage.close_gate("worker-train")
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)
    for sign in ("cutting the round's parts", "waiting for parts"):  # plan, send
        cluster.listen()("coordinator", sign)
        stage.restart_coordinator()
    stage.reached("worker-train", 2)  # train
    stage.restart_coordinator()
    cluster.listen()("coordinator", "waiting for parts")
    stage.signal("coordinator", signal.SIGSTOP)  # receive: the pushes are on their way
    stage.open_gate("worker-train")
    wait_until(lambda: all((cluster.folder / name / "finished.json").exists() for name in "ab"))
    stage.close_gate("coordinator-evaluate")
    stage.restart_coordinator()
    assert "resuming the unfinished run" in cluster.log("coordinator")
    stage.reached("coordinator-evaluate")  # merge: the base is on disk, the journal has no result
    assert (cluster.run / "bases" / "base-00001.safetensors").exists()
    assert count_rounds(cluster.run) == 0
    stage.open_gate("coordinator-evaluate")
    cluster.kill("coordinator")
    stage.close_gate("worker-train")
    cluster.coordinator()
    cluster.listen()("coordinator", "base 1:")  # commit
    stage.open_gate("worker-train")
    stage.restart_coordinator()
    cluster.listen()("coordinator", "the run is done")  # conclude
    stage.restart_coordinator()


def hurt_node(stage: Stage) -> None:
    cluster = stage.cluster
    stage.close_gate("worker-load")
    stage.close_gate("worker-train")
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)
    stage.reached("worker-load", 2)  # load
    stage.restart_node("b")
    stage.open_gate("worker-load")
    cluster.listen()("coordinator", "waiting for parts")  # send
    stage.restart_node("b")
    stage.reached("worker-train", 2)  # train
    stage.restart_node("b")
    cluster.listen()("coordinator", "waiting for parts")
    stage.reached("worker-train", 3)
    stage.signal("coordinator", signal.SIGSTOP)  # receive: its push has no answer yet
    stage.open_gate("worker-train")
    wait_until((cluster.folder / "b" / "finished.json").exists)
    stage.close_gate("coordinator-evaluate")
    cluster.kill("b")
    stage.signal("coordinator", signal.SIGCONT)
    cluster.node("b")
    stage.reached("coordinator-evaluate")  # merge
    stage.restart_node("b")
    stage.open_gate("coordinator-evaluate")


def hurt_worker(stage: Stage) -> None:
    cluster = stage.cluster
    stage.close_gate("worker-load")
    stage.close_gate("worker-train")
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)
    stage.reached("worker-load", 2)  # load
    stage.kill_worker("b")
    stage.open_gate("worker-load")
    for times in (2, 3):  # train, twice in a row; the other node is idle or done meanwhile
        stage.reached("worker-train", times)
        stage.kill_worker("b")
    stage.close_gate("coordinator-evaluate")
    stage.open_gate("worker-train")
    stage.reached("coordinator-evaluate")  # merge: it has nothing to do
    stage.kill_worker("b")
    stage.open_gate("coordinator-evaluate")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of a run that nobody disturbs."""
    stage = Stage(tmp_path_factory.mktemp("calm"), rounds=2)
    with closing(stage.cluster):
        stage.cluster.coordinator()
        for name in ("a", "b"):
            stage.cluster.node(name)
        return stage.end()


@pytest.mark.parametrize(
    "hurt", [hurt_coordinator, hurt_node, pytest.param(hurt_worker, marks=pytest.mark.long)]
)
def test_killed_at_every_stage_of_a_round_a_run_ends_with_the_same_bytes(
    tmp_path: Path, calm: dict[str, bytes], hurt: Callable[[Stage], None]
) -> None:
    stage = Stage(tmp_path, rounds=2)
    with closing(stage.cluster):
        hurt(stage)
        assert differences(calm, stage.end()) == []
        assert len(calm) == 3


@pytest.mark.long
def test_killed_at_every_stage_of_the_hand_off_a_run_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    calm_folder, hurt_folder = tmp_path / "calm", tmp_path / "hurt"
    calm_folder.mkdir()
    calm = Stage(calm_folder, rounds=0, handoff=True)
    with closing(calm.cluster):
        calm.cluster.coordinator()
        expected = calm.end()
    hurt_folder.mkdir()
    stage = Stage(hurt_folder, rounds=0, handoff=True)
    with closing(stage.cluster):
        hurt_handoff(stage)
        assert differences(expected, stage.end()) == []
        assert "final.safetensors" in expected
        assert stage.cluster.log("coordinator").count("It starts again") == 3
        incidents = stage.cluster.summary()["incidents"]
        assert isinstance(incidents, list)
        assert [entry["kind"] for entry in incidents].count("handoff") == 3


@pytest.mark.long
def test_a_hand_off_that_gets_no_further_fails_once_its_restarts_are_used_up(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, rounds=0, handoff=True)
    config = tmp_path / "run.toml"
    config.write_text(config.read_text().replace("restarts = 5", "restarts = 1"))
    with closing(stage.cluster):
        stage.close_gate("rank-train")
        stage.cluster.coordinator()
        for _ in range(2):
            stage.reached("rank-train")
            stage.cluster.ranks()[0].kill()
            stage.close_gate("rank-train")
        assert stage.cluster.wait("coordinator") == 1
        said = stage.cluster.log("coordinator")
        assert "restart 1 of 1 there" in said
        assert "the run failed: the hand-off's DeepSpeed job ended" in said


def hurt_handoff(stage: Stage) -> None:
    cluster = stage.cluster
    stage.close_gate("rank-train")
    cluster.coordinator()
    handoff = cluster.run / "handoff"
    wait_until(lambda: bool(cluster.ranks()))  # start
    cluster.ranks()[0].kill()
    stage.reached("rank-train")  # step
    cluster.ranks()[0].kill()
    stage.open_gate("rank-train")
    wait_until((handoff / "checkpoints" / "15").exists)  # in the middle of a checkpoint
    cluster.ranks()[0].kill()
    wait_until((handoff / "checkpoints" / "30" / "whole.json").exists)  # after one
    stage.restart_coordinator()
    wait_until((handoff / "final.safetensors").exists)  # the result, before it has its place
    stage.restart_coordinator()
