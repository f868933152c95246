"""`partsum study` as people call it: real nodes, a coordinator that is killed, and the same CSV."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.cluster import Cluster

Make = Callable[..., "Cluster"]

STUDY = """
[study]
keep = [1.0, 0.5]
selections = ["random", "strong"]
starts = ["scratch", "tuned"]
epochs = 10.0
base_epochs = 2.0
"""


@contextmanager
def study(cluster: Cluster, *flags: str) -> Iterator[psutil.Process]:
    """The command with two local nodes; what it started ends with it."""
    cluster.start("study", ["study", "run.toml", "--nodes", "2", *flags])
    process = psutil.Process(cluster.processes["study"].pid)
    try:
        yield process
    finally:
        if cluster.processes["study"].poll() is None:
            cluster.processes["study"].terminate()
            cluster.wait("study", 60)


def figures(path: Path) -> list[dict[str, str]]:
    """A CSV without its times."""
    with open(path, newline="") as file:
        return [
            {k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)
        ]


@pytest.mark.long
@pytest.mark.timeout(300)  # three times all processes, on a machine that may be busy
def test_a_study_that_is_killed_and_resumed_finds_what_a_calm_one_finds(make_cluster: Make) -> None:
    calm = make_cluster("calm", more=STUDY)
    with study(calm, "--csv", "calm.csv", "--svg", "calm.svg"):
        assert calm.wait("study") == 0, calm.log("study")
    assert "tuned   strong" in calm.log("study")
    assert (calm.folder / "calm.svg").read_text().startswith("<svg ")

    killed = make_cluster("killed", more=STUDY)
    with study(killed) as process:
        killed.until("study", "of 6 models; sweep")
        coordinator = next(c for c in process.children() if "coordinator" in c.cmdline())
        coordinator.send_signal(signal.SIGKILL)
        assert killed.wait("study") != 0
    assert "the coordinator ended with exit code -9" in killed.log("study")
    with study(killed):
        assert killed.wait("study") == 0, killed.log("study")
    assert "resuming the unfinished run" in killed.log("study")

    found = figures(killed.folder / "runs" / "latest" / "study.csv")
    assert found == figures(calm.folder / "calm.csv")
    assert len(found) == 6
    assert all(float(row["accuracy"]) > 0.5 for row in found)
    assert "Dropout study" in (killed.folder / "runs" / "latest" / "report.html").read_text()

    with study(killed):  # finished: nothing is trained, all is shown again
        assert killed.wait("study", 20) == 0
    assert killed.log("study").count("Starting a coordinator") == 2
    assert killed.log("study").count("tuned   strong") == 2
