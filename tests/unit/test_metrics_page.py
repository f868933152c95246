"""The HTTP door: /metrics for Prometheus, /healthz for everyone."""

from __future__ import annotations

import math
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, Gauge

from partsum.coordinator.handoff import HandoffProgress
from partsum.coordinator.metrics import PHASES, STAGES, Metrics
from partsum.coordinator.records import RoundResult
from partsum.coordinator.registry import Node, State
from partsum.shared.errors import REFUSALS, PartsumError
from partsum.shared.messages import Progress
from partsum.shared.metrics import MetricsServer
from partsum.shared.task import Scores

Health = Callable[[], tuple[bool, str]]


def well() -> tuple[bool, str]:
    return True, "round 3 of 4"


def ill() -> tuple[bool, str]:
    return False, "the run has failed"


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    try:
        with closing(urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with closing(error):
            return error.code, error.read().decode()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def port(metrics: Metrics) -> Iterator[int]:
    with closing(MetricsServer(metrics.registry, "127.0.0.1", 0, well)) as server:
        yield server.port


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_page_shows_what_was_noted(metrics: Metrics, port: int) -> None:
    metrics.accuracy.set(0.75)
    metrics.refused.labels("shape").inc()
    status, page = get(port, "/metrics")
    assert status == 200
    assert "partsum_accuracy 0.75" in page
    assert 'partsum_updates_refused_total{reason="shape"} 1.0' in page


def test_a_daemon_that_is_well_says_so_and_one_that_is_not_says_why() -> None:
    for health, status in ((well, 200), (ill, 503)):
        with closing(MetricsServer(CollectorRegistry(), "127.0.0.1", 0, health)) as server:
            assert get(server.port, "/healthz") == (status, health()[1] + "\n")


def test_a_port_in_use_is_an_error_in_words_and_a_closed_door_frees_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PartsumError, match=rf"127.0.0.1:{port}.*another metrics port"):
            MetricsServer(CollectorRegistry(), "127.0.0.1", port, well)
    for _ in range(2):
        with closing(MetricsServer(CollectorRegistry(), "127.0.0.1", port, well)) as server:
            assert server.port == port


def test_an_address_that_is_not_here_is_an_error_in_words() -> None:
    with pytest.raises(PartsumError, match=r"192\.0\.2\.1:0"):
        MetricsServer(CollectorRegistry(), "192.0.2.1", 0, well)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_page_is_served_on_ipv6_loopback_too() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with closing(MetricsServer(CollectorRegistry(), "::1", 0, well)) as server:
        assert get(server.port, "/healthz", "[::1]")[0] == 200


def test_exactly_one_phase_and_one_state_of_a_node_are_on(metrics: Metrics) -> None:
    for phase in PHASES:
        metrics.set_phase(phase)
        on = [p for p in PHASES if sample(metrics, "partsum_phase", phase=p)]
        assert on == [phase]
    node = Node("a", "1")
    of_nodes = Metrics([node])
    for state in get_args(State):
        node.state = state
        name = "partsum_cluster_node_state"
        assert [s for s in get_args(State) if sample(of_nodes, name, node="a", state=s)] == [state]


def test_a_caller_that_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a thread and a file, and whoever reaches the port could open thousands."""
    monkeypatch.setattr("partsum.shared.http.Handler.timeout", 0.2)
    with (
        closing(MetricsServer(CollectorRegistry(), "127.0.0.1", 0, well)) as server,
        closing(socket.create_connection(("127.0.0.1", server.port), timeout=5)) as silent,
    ):
        assert silent.recv(1) == b""


def test_bytes_of_nodes_are_what_they_are_when_the_page_is_asked_for() -> None:
    nodes = [Node("a", "1")]
    metrics = Metrics(nodes)
    assert sample(metrics, "partsum_bytes_total", direction="sent", node="a") == 0
    nodes[0].bytes_sent, nodes[0].bytes_received = 30, 5
    nodes.append(Node("b", "1", bytes_sent=1))
    assert sample(metrics, "partsum_bytes_total", direction="sent", node="a") == 30
    assert sample(metrics, "partsum_bytes_total", direction="received", node="a") == 5
    assert sample(metrics, "partsum_bytes_total", direction="sent", node="b") == 1


def test_two_runs_in_one_process_do_not_share_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.round.set(3)
    assert sample(other, "partsum_round") == 0


def test_every_metric_has_our_prefix_a_unit_where_it_has_one_and_says_what_it_is(
    metrics: Metrics,
) -> None:
    for family in metrics.registry.collect():
        assert family.name.startswith("partsum_"), family.name
        assert family.documentation, family.name
        assert "_ms" not in family.name


def test_nothing_has_counted_before_the_first_time_and_an_unknown_loss_is_not_0(
    metrics: Metrics,
) -> None:
    """Prometheus sees no increase in a counter that begins at 1."""
    metrics.welcome("a")
    for name, labels in (
        ("partsum_updates_total", {"node": "a"}),
        ("partsum_assignments_failed_total", {"node": "a"}),
        *(("partsum_updates_refused_total", {"reason": kind}) for kind in REFUSALS),
        *(("partsum_losses_not_finite_total", {"of": of}) for of in ("base", "node", "handoff")),
        *(("partsum_round_stage_seconds_count", {"stage": stage}) for stage in STAGES),
    ):
        assert sample(metrics, name, **labels) == 0, (name, labels)
    for name in ("loss", "accuracy", "handoff_loss", "structure_best"):
        value = sample(metrics, f"partsum_{name}")
        assert value is not None
        assert math.isnan(value), name


def test_losses_that_are_not_finite_are_counted_by_whose_they_are(metrics: Metrics) -> None:
    fine = Scores(0.5, 0.9)
    wild = Scores(math.inf, math.nan)

    def counted() -> list[float | None]:
        name = "partsum_losses_not_finite_total"
        return [sample(metrics, name, of=of) for of in ("base", "node", "handoff")]

    metrics.closed_round(RoundResult.scored("base-1", "d", fine, ()), 2.0)
    metrics.trains("a", Progress("r0-p0", 10, 0.7, 100.0))
    metrics.show_handoff(HandoffProgress(1, 9, 0.7, fine, 100.0, 1 << 20))
    assert counted() == [0, 0, 0]
    metrics.closed_round(RoundResult.scored("base-2", "d", None, ()), 2.0)  # not evaluated
    assert counted() == [0, 0, 0]
    metrics.closed_round(RoundResult.scored("base-3", "d", wild, ()), 2.0)
    metrics.trains("a", Progress("r0-p0", 20, math.nan, 100.0))
    assert counted() == [1, 1, 0]
    metrics.show_handoff(HandoffProgress(2, 9, 0.7, wild, 100.0, 1 << 20))
    assert counted() == [1, 1, 1]
    assert sample(metrics, "partsum_loss") == math.inf


def test_whatever_gets_a_run_further_moves_its_time_and_before_the_first_step_there_is_no_loss(
    metrics: Metrics,
) -> None:
    begun = time.time()
    steps: tuple[Callable[[], None], ...] = (
        lambda: metrics.trains("a", Progress("r0-p0", 10, 0.7, 100.0)),
        lambda: metrics.took_update("a"),
        lambda: metrics.closed_round(RoundResult.scored("base-1", "d", None, ()), 2.0),
        lambda: metrics.show_handoff(HandoffProgress(0, 9, 2.3, None, 0.0, 1 << 20)),
    )
    for step in steps:
        metrics.progressed.set(0)
        step()
        assert begun <= (sample(metrics, "partsum_progress_timestamp_seconds") or 0) <= time.time()
    assert math.isnan(sample(metrics, "partsum_handoff_loss") or 0)


def test_memory_is_measured_when_it_is_asked_for(metrics: Metrics) -> None:
    memory = sample(metrics, "partsum_resident_memory_bytes")
    assert memory is not None
    assert memory > 10 << 20


def test_any_registry_can_be_served() -> None:
    registry = CollectorRegistry()
    Gauge("node_thing", "A thing", registry=registry).set(2)
    with closing(MetricsServer(registry, "127.0.0.1", 0, well)) as server:
        assert "node_thing 2.0" in get(server.port, "/metrics")[1]
