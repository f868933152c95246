"""A hand-off that the nodes train: apart, together, as a pipeline; and what happens on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.faults.supervisor import free_port

from partsum.shared.messages import TaskSpec
from partsum.shared.task import gather, load_task, num_samples
from partsum.shared.tensors import TensorFile, load_tensors

if TYPE_CHECKING:
    from tests.cluster import Cluster

Make = Callable[..., "Cluster"]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def start(make_cluster: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    """Starts a run of one round of parts and a hand-off over nodes "a" and "b"."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def begin(section: str, epochs: float = 3.0, **settings: Any) -> Cluster:
        cluster = make_cluster(
            handoff=True,
            rounds=1,
            local_epochs=4.0,
            handoff_epochs=epochs,
            handoff_section=f'over = "nodes"\nbatch_size = 32\n{section}',
            rounds_section="return_seconds = 2.0",
            **settings,
        )
        cluster.coordinator()
        for name in ("a", "b"):
            cluster.node(name)
        return cluster

    return begin


def ends_well(cluster: Cluster, rounds: int, accuracy: float = 0.8) -> Any:
    """The summary of a run that has handed over: its final weights are what it says they are."""
    assert cluster.wait("coordinator", 200) == 0, cluster.log("coordinator")
    summary: Any = cluster.summary()
    assert summary["state"] == "finished"
    parts, handoff = summary["phases"]
    assert (parts["name"], parts["rounds"]) == ("parts", 1)
    assert (handoff["name"], handoff["rounds"]) == ("handoff", rounds)
    assert handoff["start_accuracy"] == parts["accuracy"]
    assert len(summary["rounds"]) == 1 + rounds
    assert summary["final_accuracy"] > max(accuracy, parts["accuracy"])
    assert accuracy_of(cluster.run / "final.safetensors") == pytest.approx(
        summary["final_accuracy"], abs=1e-3
    )
    curve = summary["handoff"]
    assert curve[0]["step"] == 0
    assert sum(point["accuracy"] is not None for point in curve) == 1 + rounds
    assert any(point["loss"] for point in curve)
    assert "hand-off" in (cluster.run / "report.html").read_text()
    return summary


def accuracy_of(path: Path) -> float:
    task = load_task(TaskSpec("partsum.shared.tasks:digits", {"widths": [32, 32]}))
    model = task.model()
    model.load_state_dict(load_tensors(path), strict=True)
    validation = task.validation()
    inputs, targets = gather(validation, torch.arange(num_samples(validation)))
    return float((model.eval()(inputs).argmax(1) == targets).float().mean())


def test_nodes_apart_train_the_whole_base_and_it_takes_an_outer_step(
    start: Callable[..., Cluster],
) -> None:
    cluster = start("rounds = 3")
    summary = ends_well(cluster, rounds=3)
    for name in ("a", "b"):
        assert cluster.wait(name) == 0
        assert "without DeepSpeed's moments" not in cluster.log(name)
    assert [len(entry["part_losses"]) for entry in summary["rounds"]] == [2] * 4
    with TensorFile(cluster.run / "final.safetensors") as file:
        assert file.metadata["task"] == "partsum.shared.tasks:digits"
    moved = max((cluster.run / "bases").glob("moments-*"))
    with TensorFile(moved) as file:
        assert float(file.read("head.weight").abs().sum()) > 0


@pytest.mark.long
def test_a_killed_node_and_a_killed_coordinator_cost_nodes_apart_the_open_round(
    start: Callable[..., Cluster],
) -> None:
    cluster = start("rounds = 3", epochs=60.0, port=free_port())
    cluster.until("coordinator", "base 2:")
    cluster.kill("b")
    cluster.until("coordinator", "node b is gone")
    cluster.kill("coordinator")
    cluster.coordinator()
    cluster.node("b")
    ends_well(cluster, rounds=3)
    assert "base 2:" not in cluster.log("coordinator").partition("base 2:")[2]


def test_nodes_together_train_as_one_and_rank_0_delivers_for_all(
    start: Callable[..., Cluster],
) -> None:
    cluster = start('how = "together"\nrounds = 2')
    summary = ends_well(cluster, rounds=2)
    assert cluster.log("coordinator").count("over gloo") == 2
    a, b = sorted(summary["nodes"], key=lambda node: str(node["name"]))
    weights = (cluster.run / "final.safetensors").stat().st_size
    assert a["bytes_received"] - b["bytes_received"] > weights  # b's were the start
    for name in ("a", "b"):
        assert "without DeepSpeed's moments" not in cluster.log(name)


def test_when_a_rank_is_killed_the_others_go_on_and_it_is_back_in_the_next_gang(
    start: Callable[..., Cluster],
) -> None:
    cluster = start('how = "together"\nrounds = 2', epochs=40.0)
    cluster.until("coordinator", "r1-g1 meets at")
    cluster.until("a", "assignment=r1-p0-g1")
    cluster.kill("b")
    cluster.until("coordinator", "gang r1-g2: a, over gloo", 90)
    cluster.node("b")
    cluster.until("coordinator", "gang r2-g1: a, b, over gloo", 150)
    ends_well(cluster, rounds=2)


def test_a_pipeline_over_two_nodes_trains_the_base(start: Callable[..., Cluster]) -> None:
    cluster = start('how = "pipeline"\nzero_stage = 1\nrounds = 2')
    piped = ends_well(cluster, rounds=2)
    assert "without DeepSpeed's moments" not in cluster.log("a") + cluster.log("b")
    assert piped["final_accuracy"] > 0.85
