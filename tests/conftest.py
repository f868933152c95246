"""Settings for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tests.cluster import Cluster

Make = Callable[..., Cluster]

# Tiny models gain nothing from threads, and on a busy machine threads wait for each other.
torch.set_num_threads(1)

# Times on a shared machine say nothing; what is drawn is the same on every machine.
settings.register_profile(
    "partsum",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("partsum")


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Make]:
    """Makes clusters, each in a folder of its own, and ends them."""
    made: list[Cluster] = []

    def make(name: str = "cluster", **settings: object) -> Cluster:
        folder = tmp_path / name
        folder.mkdir()
        cluster = Cluster(folder)
        cluster.configure(**settings)  # type: ignore[arg-type]
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()
