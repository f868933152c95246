"""A network that is cut, slow, lossy or half open: nobody lends a hand, and no byte differs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.cluster import Cluster
from tests.faults.conftest import play
from tests.faults.network import Network, why_not

WHY_NOT = why_not()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.timeout(240)]

A_MINUTE = pytest.param(60, marks=pytest.mark.long)
FAST, SLOW = "100mbit", "500kbit"  # an update of 340 kB takes five seconds on a slow link


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network("coordinator", "a", "b")
    yield network
    network.close()


@pytest.fixture
def cluster(victim: Cluster, network: Network) -> Cluster:
    """Each process on a host of its own; the coordinator listens to all."""
    with open(victim.folder / "run.toml", "a") as file:
        file.write(f'host = "{network.address("coordinator")}"\ninsecure = true\n')
    victim.places = {name: network.inside(name) for name in ("coordinator", "a", "b")}
    return victim


def ends_well(cluster: Cluster, calm_weights: bytes) -> None:
    assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
    assert cluster.weights() == calm_weights


@pytest.mark.parametrize("seconds", [10, A_MINUTE])
def test_a_node_that_is_cut_off_while_it_trains_comes_back_by_itself(
    cluster: Cluster, network: Network, calm_weights: bytes, seconds: float
) -> None:
    play(cluster)
    cluster.until("coordinator", "base 1:")
    network.cut("a")
    cluster.until("coordinator", "node a is gone")
    time.sleep(seconds)
    network.heal("a")
    healed = time.monotonic()
    cluster.until("coordinator", "node a connected", times=2)
    print(f"back {time.monotonic() - healed:.1f} s after a cut of {seconds} s")
    ends_well(cluster, calm_weights)


@pytest.mark.parametrize("seconds", [0, A_MINUTE])
def test_a_push_over_a_slow_and_lossy_link_is_left_alone_and_once_cut_comes_through(
    cluster: Cluster, network: Network, calm_weights: bytes, seconds: float
) -> None:
    network.slow("a", SLOW, queue_bytes=12_000)  # eight packets wait; more are lost
    play(cluster)
    cluster.until("coordinator", "base 1:")
    assert network.lost("a") > 10
    assert "node a is gone" not in cluster.log("coordinator")
    assert "it will go on" not in cluster.log("a")

    cluster.until("coordinator", "waiting for part 0 from a", times=2)
    time.sleep(1)  # in the middle of its push
    network.cut("a")
    cluster.until("coordinator", "node a is gone")
    time.sleep(seconds)
    network.heal("a")
    network.slow("a", FAST)
    ends_well(cluster, calm_weights)
    summary: Any = cluster.summary()
    a, b = sorted(summary["nodes"], key=lambda node: str(node["name"]))
    first, *_ = [
        span["end_seconds"] - span["start_seconds"]
        for span in a["timeline"]
        if span["state"] == "sending"
    ]
    assert first > 4  # longer than a node may be silent, or this shows nothing
    assert a["bytes_received"] < 1.1 * b["bytes_received"]  # no chunk came twice


@pytest.mark.long
def test_a_connection_that_is_half_open_is_noticed_by_the_node(
    cluster: Cluster, network: Network, calm_weights: bytes
) -> None:
    """The coordinator dies and comes back behind a cut cable: no reset reaches the nodes."""
    play(cluster)
    cluster.until("coordinator", "base 1:")
    network.cut("coordinator")
    cluster.kill("coordinator")
    cluster.coordinator()
    network.heal("coordinator")
    healed = time.monotonic()
    for name in ("a", "b"):
        cluster.until("coordinator", f"node {name} connected", times=2)
    print(f"both back {time.monotonic() - healed:.1f} s after the cable was whole")
    ends_well(cluster, calm_weights)


def test_a_host_that_is_cut_off_from_a_gang_of_the_hand_off_is_in_the_next_one(
    make_cluster: Callable[..., Cluster], network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = make_cluster(
        rounds=1,
        handoff=True,
        handoff_epochs=40.0,
        handoff_section='over = "nodes"\nhow = "together"\nrounds = 2\nbatch_size = 32',
        rounds_section="return_seconds = 1.0",
        more=f'host = "{network.address("coordinator")}"\ninsecure = true',
    )
    cluster.places = {name: network.inside(name) for name in ("coordinator", "a", "b")}
    play(cluster)
    cluster.until("coordinator", f"gang r1-g1 meets at {network.address('a')}", 90)
    network.cut("b")
    cluster.until("coordinator", "gang r1-g2: a, over gloo")
    network.heal("b")
    cluster.until("coordinator", "gang r2-g1: a, b, over gloo", 90)
    assert cluster.wait("coordinator", 120) == 0, cluster.log("coordinator")
    summary: Any = cluster.summary()
    assert [phase["rounds"] for phase in summary["phases"]] == [1, 2]
    assert summary["final_accuracy"] > summary["phases"][0]["accuracy"]
    moved = [incident for incident in summary["incidents"] if incident["kind"] == "moved"]
    assert any("DeepSpeed's moments begin anew" in incident["text"] for incident in moved)
