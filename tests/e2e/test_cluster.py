"""The two daemons as processes: a whole run, and what happens when one of them is killed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import load_file

from partsum.shared.messages import TaskSpec
from partsum.shared.task import gather, load_task, num_samples

if TYPE_CHECKING:
    from tests.cluster import Cluster

Make = Callable[..., "Cluster"]


def test_a_run_from_parts_to_hand_off_leaves_everything_a_user_needs(make_cluster: Make) -> None:
    cluster = make_cluster(handoff=True, rounds=2, local_epochs=4.0)
    cluster.coordinator()
    metrics_port = cluster.metrics_port("coordinator")
    with grpc.insecure_channel(cluster.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    for name in ("a", "b"):
        cluster.node(name)
    cluster.until("coordinator", "DeepSpeed trains the merged base")
    while 'partsum_phase{phase="handoff"} 1.0' not in (page := _get(metrics_port, "/metrics")):
        time.sleep(0.05)  # told five times a second
    assert 'partsum_bytes_total{direction="received",node="a"}' in page
    assert "partsum_accuracy " in page
    assert f'planner="complement",run="{cluster.run.name}",task="partsum.shared.tasks' in page
    assert _value(page, "partsum_disk_free_bytes") > 0
    assert _get(metrics_port, "/healthz").startswith("handoff")
    assert cluster.wait("coordinator") == 0
    assert cluster.wait("a") == 0
    assert cluster.wait("b") == 0
    assert "base 2: loss " in cluster.log("coordinator")
    assert "the final model: loss " in cluster.log("coordinator")
    summary: Any = cluster.summary()
    assert summary["state"] == "finished"
    assert [phase["name"] for phase in summary["phases"]] == ["parts", "handoff"]
    assert summary["phases"][0]["rounds"] == 2
    assert summary["phases"][0]["bytes_received"] > 2 * 2 * 4 * min(summary["part_parameters"])
    assert sum(summary["part_fractions"]) == pytest.approx(1)
    assert _value(page, "partsum_full_model_bytes_total") == summary["full_model_bytes"]
    assert summary["final_accuracy"] > 0.5
    assert summary["peak_rss_bytes"] > 10**7
    assert (cluster.run / "report.html").read_text().startswith("<!doctype html>")
    assert (cluster.folder / "runs" / "latest").resolve() == cluster.run
    task = load_task(TaskSpec("partsum.shared.tasks:digits", {"widths": [32, 32]}))
    model = task.model()
    model.load_state_dict(load_file(cluster.run / "final.safetensors"), strict=True)
    validation = task.validation()
    inputs, targets = gather(validation, torch.arange(num_samples(validation)))
    right = (model.eval()(inputs).argmax(1) == targets).float().mean()
    assert float(right) == pytest.approx(summary["final_accuracy"], abs=1e-3)


def _value(page: str, metric: str) -> float:
    (found,) = re.findall(rf"^{metric} (\S+)$", page, re.MULTILINE)
    return float(found)


def test_a_killed_nodes_part_is_taken_over_and_the_round_goes_on(make_cluster: Make) -> None:
    cluster = make_cluster(rounds=3, local_epochs=10.0, rounds_section="return_seconds = 1.0")
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)
    cluster.until("coordinator", "base 1:")
    cluster.kill("b")
    assert cluster.wait("coordinator") == 0
    assert "node b is gone" in cluster.log("coordinator")
    assert "its moments are with b" in cluster.log("coordinator")
    summary: Any = cluster.summary()
    assert summary["state"] == "finished"
    assert len(summary["rounds"]) == 3
    assert all(not entry["missing_parts"] for entry in summary["rounds"])


def test_status_watch_list_and_stop_tell_an_operator_what_is_going_on(make_cluster: Make) -> None:
    cluster = make_cluster(rounds=2)
    cluster.coordinator()
    status = _partsum(cluster, "run", "status")
    assert status.returncode == 0
    assert "waiting for nodes: 0 of 2" in status.stdout
    assert f"partsum node --coordinator {cluster.address}" in " ".join(status.stdout.split())
    listing = _partsum(cluster, "run", "list")
    assert "running" in listing.stdout
    assert cluster.run.name in listing.stdout
    assert _partsum(cluster, "run", "stop").returncode == 0
    assert cluster.wait("coordinator", 20) == 130
    assert "the same command resumes it" in cluster.log("coordinator")
    after = _partsum(cluster, "run", "status", "--json")
    assert json.loads(after.stdout)["state"] == "stopped"
    nobody = _partsum(cluster, "run", "status", "--coordinator", cluster.address, "--run", "none")
    assert nobody.returncode == 3
    assert nobody.stderr.startswith("partsum: no coordinator answers at")


def test_a_node_waits_for_a_coordinator_that_is_not_there_yet(make_cluster: Make) -> None:
    cluster = make_cluster()
    cluster.node("a", "127.0.0.1:9")
    cluster.until("a", "no coordinator answers at 127.0.0.1:9")
    cluster.processes["a"].terminate()
    assert cluster.wait("a", 20) == 130


def test_a_port_in_use_is_said_before_anything_begins(make_cluster: Make) -> None:
    cluster = make_cluster()
    cluster.coordinator()
    port = cluster.address.rpartition(":")[2]
    other = make_cluster("other")
    text = (other.folder / "run.toml").read_text().replace("\nport = 0", f"\nport = {port}")
    (other.folder / "run.toml").write_text(text)
    said = _partsum(other, "coordinator", "--config", "run.toml")
    assert said.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_second_coordinator_on_the_same_run_is_refused(make_cluster: Make) -> None:
    cluster = make_cluster()
    cluster.coordinator()
    said = _partsum(cluster, "coordinator", "--config", "run.toml")
    assert said.returncode == 1
    assert "is open in another coordinator" in said.stderr


def _partsum(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "partsum.shared", *arguments]
    return subprocess.run(
        command, cwd=cluster.folder, capture_output=True, text=True, timeout=60, check=False
    )


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as page:
        return str(page.read().decode())
