"""Every query of every dashboard, asked of a real Prometheus that scraped real daemons.

What this does not prove is that Grafana loads and draws the dashboards: no Grafana is here.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deploy.dashboards.picture import Picture
from tests.dashboards import WINDOW, boards, panels
from tests.prometheus import SHIPPED, Prometheus

if TYPE_CHECKING:
    from tests.cluster import Cluster

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="no prometheus here: apt install prometheus (scripts/ci_packages.sh)",
    ),
]

SEARCH = '[structures]\ngates = "partial"\nsplits = 2\ncandidates = 4\nkeep = 2'


def test_promtool_finds_nothing_wrong_with_what_is_shipped_and_its_rules_pass_their_tests() -> None:
    for words in ("check config prometheus.yml", "test rules alerts_test.yml"):
        command = ["promtool", *words.split()]
        done = subprocess.run(command, cwd=SHIPPED, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_panel_has_data_of_a_run_that_searches_and_hands_off(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(
        rounds=5,  # some seconds each, also on a fast machine: rates need two scrapes
        local_epochs=25.0,
        parts='planner = "structures"\nmoments = "travel"',
        rounds_section="min_nodes = 2",
        handoff=True,
        handoff_section="batch_size = 8",
        more=SEARCH,
    )
    cluster.coordinator()
    nodes = ("a", "b")
    for name in nodes:
        cluster.node(name, metrics="0")
    targets = {
        "partsum-coordinator": [cluster.metrics_port("coordinator")],
        "partsum-node": [cluster.metrics_port(name) for name in nodes],
    }
    begun = time.time()
    with closing(Prometheus(tmp_path, targets)) as prometheus:
        prometheus.until_ready()
        assert cluster.wait("coordinator", 200) == 0, cluster.log("coordinator")
        ended = time.time()
        assert_all_have_data(prometheus, begun, ended)
        picture = Picture(prometheus.url, begun, ended, WINDOW)
        for name in ("run.json", "handoff.json", "structures.json"):  # panels of every kind
            picture.draw(boards()[name], tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        rules = prometheus.ask("rules")["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} == {"ok"}
        fired = prometheus.ask(
            "query_range", query='ALERTS{alertstate="firing"}', start=begun, end=ended, step=1
        )
        assert fired["result"] == []


def assert_all_have_data(prometheus: Prometheus, begun: float, ended: float) -> None:
    empty = []
    for panel in panels():
        for query in panel.queries():
            found = prometheus.ask("query_range", query=query, start=begun, end=ended, step=0.25)
            values = [float(v) for series in found["result"] for _, v in series["values"]]
            if not any(map(math.isfinite, values)):
                empty.append(f"{panel.name}: {query}")
    assert not empty, "\n".join(empty)
