"""Every way to plan, aggregate and feed a run, through real processes."""

from __future__ import annotations

import gzip
import json
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.cluster import Cluster

Make = Callable[..., "Cluster"]

WAYS = {
    "residual": 'mode = "residual"',
    "parts by relevance": (
        'planner = "relevance"\nmode = "residual"\n[relevance]\nepochs = 4.0\nscore = "taylor"'
    ),
    "federated averaging": 'planner = "full"',
    "gradients of residual parts": (
        'mode = "residual"\naggregate = "gradients"\ngradient_batches = 2'
    ),
    "copies of one slice": 'mode = "copies"',
    "measured": 'fractions = "measured"',
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_learns_whatever_way_it_is_planned_and_merged(make_cluster: Make, way: str) -> None:
    rounds = 30 if "gradients" in way else 3
    cluster = make_cluster(rounds=rounds, local_epochs=2.0, parts=WAYS[way])
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)
    assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
    summary: Any = cluster.summary()
    losses = [entry["loss"] for entry in summary["rounds"]]
    assert len(losses) == rounds
    assert losses[-1] < losses[0]
    if "gradients" not in way:  # sixty small steps only begin
        assert summary["final_accuracy"] > 0.3
    if way == "parts by relevance":
        assert [ranked["shared"] for ranked in summary["ranking"]] == [3]
        assert "Strong and weak units" in (cluster.run / "report.html").read_text()
    if way == "measured":
        assert sum(summary["part_fractions"]) == pytest.approx(1)
    if way == "federated averaging":
        assert summary["part_parameters"] == [summary["base_parameters"]] * 2


def test_nodes_without_the_data_set_are_sent_their_clusters_samples(make_cluster: Make) -> None:
    cluster = make_cluster(rounds=1, more="[data]\nstream = true")
    _write_images(cluster.folder / "images")
    text = (cluster.folder / "run.toml").read_text()
    text = text.replace("tasks:digits", "tasks:image_mlp")
    text = text.replace("widths = [32, 32]", 'widths = [32, 32], folder = "images"')
    (cluster.folder / "run.toml").write_text(text)
    cluster.coordinator()
    elsewhere = cluster.folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("a", "b"):
        cluster.node(name, folder=elsewhere)
    assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
    summary: Any = cluster.summary()
    assert summary["state"] == "finished"
    # 100 samples of 784 float32 and a label travel to each of two nodes, beside small control.
    assert summary["phases"][0]["bytes_sent"] > 200 * 784 * 4


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(make_cluster: Make) -> None:
    calm, full = (make_cluster(name, rounds=3, local_epochs=4.0) for name in ("calm", "full"))
    for cluster in (calm, full):
        cluster.coordinator()
        for name in ("a", "b"):
            cluster.node(name)
        if cluster is full:
            full.until("coordinator", "base 1:")
            # No file of the coordinator may grow: as full a disk as a test can make.
            full.limit_files("coordinator", 4096)
            full.until("coordinator", "cannot ")
            full.limit_files("coordinator", resource.RLIM_INFINITY)
        code = cluster.wait("coordinator")
        if code == 1 and cluster is full:  # it gave up before there was room again
            for name in ("a", "b"):
                full.kill(name)  # they look for it at its old port
            full.coordinator()
            for name in ("a", "b"):
                full.node(name)
            code = full.wait("coordinator")
        assert code == 0, cluster.log("coordinator")
    assert "Traceback" not in full.log("coordinator")
    assert full.weights() == calm.weights()


def test_the_dry_run_tells_the_cost_and_spends_nothing(make_cluster: Make) -> None:
    cluster = make_cluster()
    found: Any = json.loads(_plan(cluster, "--json").stdout)
    assert len(found["parts"]) == 2
    assert found["parts"][0]["bytes_down_per_round"] == 0
    assert 0 < found["parts"][0]["parameters"] < found["base_parameters"] / 2
    assert "width groups" in _plan(cluster).stdout
    assert found["ranking_flops"] == 0
    assert not (cluster.folder / "runs").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("rounds = 2", "runds = 2"), "parts.runds: unknown key; did you mean 'rounds'?"),
        (("count = 2", 'count = "two"'), "parts.count"),
        (("tasks:digits", "tasks:digit"), "has no function 'digit'"),
        (("partsum.shared.tasks:digits", "nowhere.at.all:task"), "cannot import the task's module"),
        (("widths = [32, 32]", "width = 32"), "does not take these options"),
        (("count = 2", "count = 33"), "has 32 units, too few for 33 parts"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_with_what_to_do(
    make_cluster: Make, change: tuple[str, str], said: str
) -> None:
    cluster = make_cluster()
    text = (cluster.folder / "run.toml").read_text()
    (cluster.folder / "run.toml").write_text(text.replace(*change))
    done = _plan(cluster)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def _plan(cluster: Cluster, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "partsum.shared", "plan", "run.toml", *flags],
        cwd=cluster.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _write_images(folder: Path) -> None:
    """A tiny image set in IDX form."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 200), ("t10k", 50)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        header = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
        images = folder / f"{name}-images-idx3-ubyte.gz"
        images.write_bytes(gzip.compress(header + pixels.tobytes()))
        header = struct.pack(">HBBI", 0, 8, 1, count)
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(header + labels.tobytes())
        )
