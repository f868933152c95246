"""A run that is hurt in many ways, and what it ends with when nobody hurts it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from tests.cluster import Cluster

Make = Callable[..., Cluster]


def settle(cluster: Cluster) -> None:
    """Four rounds of two parts, with updates of 340 kB; the coordinator keeps its port."""
    cluster.configure(rounds=4, local_epochs=8.0, rounds_section="return_seconds = 120.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    text = (cluster.folder / "run.toml").read_text().replace("\nport = 0", f"\nport = {port}")
    (cluster.folder / "run.toml").write_text(text.replace("[32, 32]", "[512, 512]"))


def play(cluster: Cluster) -> None:
    """Start everything."""
    cluster.coordinator()
    for name in ("a", "b"):
        cluster.node(name)


@pytest.fixture
def victim(make_cluster: Make) -> Cluster:
    """What will be hurt, not yet started."""
    cluster = make_cluster("victim")
    settle(cluster)
    return cluster


@pytest.fixture(scope="session")
def calm_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """The weights that the undisturbed run ends with."""
    cluster = Cluster(tmp_path_factory.mktemp("calm"))
    settle(cluster)
    try:
        play(cluster)
        assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
        yield cluster.weights()
    finally:
        cluster.close()
