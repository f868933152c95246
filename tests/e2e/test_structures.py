"""A search through real processes: nodes come and go, and the coordinator dies on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster import Cluster

SEARCH = 'planner = "structures"\nmoments = "travel"'
MORE = '[structures]\ngates = "partial"\nsplits = 2\ncandidates = 4\nkeep = 2'


@pytest.mark.timeout(240)
def test_a_search_ends_with_the_same_bytes_though_nodes_and_coordinator_die(
    make_cluster: Callable[..., Cluster],
) -> None:
    calm, wild = (
        make_cluster(
            name,
            rounds=2,
            local_epochs=2.0,
            parts=SEARCH,
            more=MORE,
            rounds_section="min_nodes = 1\nreturn_seconds = 0.0",
        )
        for name in ("calm", "wild")
    )
    calm.coordinator()
    for name in ("a", "b"):
        calm.node(name)
    assert calm.wait("coordinator") == 0, calm.log("coordinator")

    wild.coordinator()
    wild.node("a")
    wild.until("coordinator", "base 1:")
    wild.kill("a")
    wild.kill("coordinator")
    wild.coordinator()
    for name in ("b", "c"):
        wild.node(name)
    assert wild.wait("coordinator") == 0, wild.log("coordinator")

    assert wild.weights() == calm.weights()
    summary: Any = wild.summary()
    tried = summary["search"]["structures"]
    assert sorted(one["bits"] for one in tried) == ["00", "01", "10", "11"]
    assert [one["rounds"] for one in tried] == [2, 2, 1, 1]
    bits = zip(summary["search"]["gates"], tried[0]["bits"], strict=True)
    assert summary["gates_off"] == [gate for gate, bit in bits if bit == "0"]
    assert summary["final_accuracy"] == tried[0]["accuracy"]
    assert "Structures" in (wild.run / "report.html").read_text()
