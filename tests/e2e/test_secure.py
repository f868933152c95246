"""Secure aggregation through real processes: the plain mean's base, whatever dies."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tests.faults.supervisor import free_port

from partsum.shared.tensors import load_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster import Cluster

    Make = Callable[..., Cluster]

NODES = ("a", "b", "c")
MASKED = "[privacy]\nsecure_aggregation = true"


def begun(make_cluster: Make, name: str, more: str = MASKED) -> Cluster:
    cluster = make_cluster(
        name,
        rounds=3,
        local_epochs=4.0,
        port=free_port(),
        parts='planner = "full"',
        rounds_section="return_seconds = 60.0",
        more=more,
    )
    path = cluster.folder / "run.toml"
    path.write_text(path.read_text().replace("count = 2", "count = 3"))
    cluster.coordinator()
    for node in NODES:
        cluster.node(node)
    return cluster


def finished(cluster: Cluster) -> dict[str, torch.Tensor]:
    assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
    for node in NODES:
        assert cluster.wait(node) == 0, cluster.log(node)
    return load_tensors(newest(cluster))


def newest(cluster: Cluster) -> Path:
    return max((cluster.run / "bases").glob("base-*"))


@pytest.mark.timeout(400)
def test_a_masked_run_ends_as_a_plain_one_also_after_kills(make_cluster: Make) -> None:
    plain = begun(make_cluster, "plain", more="")
    expected = finished(plain)
    calm = begun(make_cluster, "calm")
    found = finished(calm)
    for name, tensor in expected.items():
        # Measured: 6e-8. Training amplifies the last bit of the first mean, but not much.
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-5), name
    assert not list(calm.folder.glob("?/secrets.json"))

    hurt = begun(make_cluster, "hurt")
    run = hurt.run
    hurt.until("b", "assignment=r0")
    hurt.kill("b")
    hurt.until("c", "update of r0-p2 accepted")
    stopped = hurt.worker("c")
    assert stopped is not None
    stopped.send_signal(signal.SIGSTOP)
    hurt.node("b")  # with the same masks
    hurt.until("coordinator", "base 1:")
    end = time.monotonic() + 60
    while len(list((run / "spool").glob("update-r1-*"))) < 2:
        assert time.monotonic() < end, hurt.log("coordinator")
        time.sleep(0.02)
    hurt.kill("coordinator")  # what these masks hid is lost with it
    stopped.send_signal(signal.SIGCONT)
    hurt.coordinator()
    assert hurt.run == run
    assert finished(hurt)
    assert newest(hurt).read_bytes() == newest(calm).read_bytes()
    assert "closed without" not in hurt.log("coordinator")
    assert "assignment=r1-p0 was trained before" in hurt.log("a")
