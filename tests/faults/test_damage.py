"""Files that a disk has spoiled while the coordinator was dead: real processes, the same bytes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import Cluster
from tests.faults.conftest import play


def interrupt(cluster: Cluster, rounds: int) -> None:
    """Kill the coordinator with so many rounds committed and the next one open."""
    cluster.until("coordinator", f"base {rounds}:")
    time.sleep(0.05)
    cluster.kill("coordinator")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.timeout(240)
def test_whatever_was_damaged_is_said_and_the_run_ends_with_the_same_bytes(
    victim: Cluster, calm_weights: bytes
) -> None:
    play(victim)
    interrupt(victim, rounds=1)
    for name in ("bases/base-00001.safetensors", "clusters/c0.i64", "journal.sqlite-wal"):
        shorten(victim.run / name)
    victim.coordinator()
    interrupt(victim, rounds=3)
    shorten(victim.run / "parts" / "r00002-p0.safetensors")
    victim.coordinator()
    assert victim.wait("coordinator") == 0, victim.log("coordinator")
    for said in (
        "the journal was damaged (it has lost",
        "it was merged again from the parts, to the byte",
        "the clusters are made again from the seed",
        "went back from base 3 to base 2",
    ):
        assert said in victim.log("coordinator")
    assert victim.weights() == calm_weights
    summary: Any = victim.summary()
    kinds = {incident["kind"] for incident in summary["incidents"]}
    assert {"journal_restored", "rebuilt", "damaged", "rolled_back"} <= kinds
