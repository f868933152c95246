"""A slow node holds nobody up: its part goes to an idle one too, and whoever is first counts."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster import Cluster

    Make = Callable[..., Cluster]


def worker_of(cluster: Cluster, name: str) -> psutil.Process:
    """The process that trains for a node."""
    for child in psutil.Process(cluster.processes[name].pid).children():
        if "multiprocessing.spawn" in " ".join(child.cmdline()):
            return child
    raise AssertionError(f"node {name} has no worker")


def test_a_part_of_a_stalled_worker_is_trained_by_an_idle_node_too(make_cluster: Make) -> None:
    cluster = make_cluster(rounds=3, local_epochs=4.0, parts='moments = "travel"')
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)
    cluster.until("coordinator", "base 1:")
    stalled = worker_of(cluster, "b")
    stalled.send_signal(signal.SIGSTOP)  # its daemon lives, so no heartbeat is missed
    began = time.monotonic()
    cluster.until("coordinator", "base 2:", 40)
    assert time.monotonic() - began < 40
    assert "a second copy goes to a" in cluster.log("coordinator")
    cluster.until("b", "delivered it first")
    stalled.send_signal(signal.SIGCONT)
    assert cluster.wait("coordinator") == 0
