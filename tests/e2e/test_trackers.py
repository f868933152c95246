"""TensorBoard's files of a real run, whose coordinator is killed on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.faults.supervisor import free_port

if TYPE_CHECKING:
    from tests.cluster import Cluster

    Make = Callable[..., Cluster]


def steps(folder: Path, name: str) -> list[int]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="pip install 'partsum[tensorboard]'",
    )
    found = accumulator.EventAccumulator(str(folder), purge_orphaned_data=True)
    found.Reload()
    return [event.step for event in found.Scalars(name)]


def test_every_round_is_in_the_files_once_though_the_coordinator_was_killed(
    make_cluster: Make,
) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'partsum[tensorboard]'")
    cluster = make_cluster(
        rounds=4,
        local_epochs=10.0,
        port=free_port(),
        more="[trackers]\ntensorboard = true",
    )
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)
    cluster.until("coordinator", "tensorboard: ")
    cluster.until("coordinator", "base 2: ")
    cluster.kill("coordinator")
    cluster.coordinator()
    assert cluster.wait("coordinator") == 0
    folder = cluster.run / "tensorboard"
    assert steps(folder / "parts", "loss/validation") == [1, 2, 3, 4]
    assert steps(folder / "parts", "accuracy") == [1, 2, 3, 4]
    assert len(steps(folder / "parts", "result/accuracy")) == 1
