"""The benchmarks beside time_to_accuracy: what they read, count, refuse, draw and end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are scripts, not installed

from benchmarks import against_flower, handoff, memory, rounds
from benchmarks.against_flower import OURS, Seen
from benchmarks.cases import Case, round_seconds
from benchmarks.flower.environment import FlowerError, install
from benchmarks.flower.log import read_rounds
from benchmarks.resident import Resident

from partsum.coordinator.summary import RoundSummary, StageSeconds, Summary

LOG = """\
1795475723.838449 Starting FedAvg strategy:
1795475723.838641 \t├── Number of rounds: 3
1795475723.839050 [ROUND 1/3]
1795475723.901352 configure_train: Sampled 2 nodes (out of 2)
1795475733.464402 aggregate_train: Received 2 results and 0 failures
1795475733.839050 [ROUND 2/3]
1795475742.184269 aggregate_train: Received 2 results and 0 failures
1795475743.339050 [ROUND 3/3]
1795475752.281691 aggregate_train: Received {last} results and {failures} failures
1795475752.339050 Strategy execution finished in 28.50s
1795475752.389277 Final results:
"""
WHOLE = LOG.format(last=2, failures=0)
CASE = Case("10MB", 500, 10, nodes=2, rounds=3)


def test_rounds_are_read_from_one_round_line_of_flowers_log_to_the_next() -> None:
    assert read_rounds(WHOLE).seconds(nodes=2) == pytest.approx([10.0, 9.5, 9.0])


def test_a_log_that_stops_in_a_round_is_no_result() -> None:
    lines = WHOLE.splitlines(keepends=True)
    with pytest.raises(FlowerError, match="ended in round 2, 1 were done"):
        read_rounds("".join(lines[:6])).seconds(nodes=2)
    with pytest.raises(FlowerError, match="ended in round 0"):
        read_rounds("").seconds(nodes=2)


def test_a_round_that_went_on_without_a_node_is_no_result() -> None:
    with pytest.raises(FlowerError, match=r"rounds \[3\] went on without all 2 nodes"):
        read_rounds(LOG.format(last=1, failures=1)).seconds(nodes=2)


@pytest.mark.timeout(30)
def test_a_flower_that_cannot_be_installed_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FlowerError, match=r"flwr 1\.42\.0 could not be installed") as refused:
        install(tmp_path / "flower", {})
    assert "No matching distribution" in str(refused.value)
    assert "package index" in str(refused.value)


def test_flowers_settings_are_names_and_values() -> None:
    assert against_flower.setting("FLWR_X=a=b") == ("FLWR_X", "a=b")
    with pytest.raises(Exception, match="'FLWR_X' is not NAME=VALUE"):
        against_flower.setting("FLWR_X")


def test_a_sides_figures_are_over_all_of_its_runs() -> None:
    runs = [Seen([1.0, 2.0], 100, 300, 8e7), Seen([4.0], 200, 250, 8e7)]
    found = against_flower.figures_of(CASE, runs)
    assert found["round_seconds"] == 2.0
    assert found["fastest_round_seconds"] == 1.0
    assert found["megabytes_per_second"] == pytest.approx(20.0)  # 10 MB to two nodes and back
    assert (found["coordinator_bytes"], found["whole_bytes"]) == (200, 300)


def test_ratios_say_how_many_times_faster_and_what_share_of_the_memory() -> None:
    theirs = against_flower.figures_of(CASE, [Seen([10.0, 20.0], 400, 800, 0.0)])
    ours = against_flower.figures_of(CASE, [Seen([0.1, 0.2], 100, 400, 0.0)])
    assert against_flower.ratios(theirs, ours) == pytest.approx(
        {
            "times_faster": 100.0,
            "times_faster_than_their_best": 10.0 / 0.15,
            "share_of_coordinator_memory": 0.25,
            "share_of_whole_memory": 0.5,
        }
    )


def test_memory_is_the_coordinators_the_nodes_or_the_operators() -> None:
    assert against_flower.side(["/v/bin/python3", "/v/bin/flower-superlink"]) == "coordinator"
    assert against_flower.side(["python", "-m", "partsum.shared", "coordinator"]) == "coordinator"
    assert against_flower.side(["python", "-m", "partsum.shared", "node"]) == "node"
    assert against_flower.side(["/v/bin/python3", "/v/bin/flower-supernode"]) == "node"
    assert against_flower.side(["/v/bin/python3", "/v/bin/flwr", "run"]) == "operator"


def test_memory_is_seen_by_side_and_nobody_is_left_behind() -> None:
    hold = "held = bytearray(b'x') * 60_000_000; print(flush=True); import time; time.sleep(60)"
    with Resident(lambda command: "big" if hold in command else "other") as resident:
        child = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.5)
    assert child.wait(5) < 0
    child.stdout.close()
    assert not psutil.pid_exists(child.pid)
    assert 60e6 < resident.peak_bytes["big"] < 200e6
    assert resident.whole_peak_bytes >= resident.peak_bytes["big"]


def test_a_rounds_figures_leave_out_the_first_round_and_say_what_no_stage_explains() -> None:
    stages = StageSeconds(plan=0.1, send=0.2, train=0.0, receive=0.3, merge=0.1)
    slow = StageSeconds(plan=9.0, send=9.0, train=9.0, receive=9.0, merge=9.0)
    summary = Summary(
        run="blank",
        task="partsum.shared.tasks:blank",
        config_digest="0" * 32,
        seed=0,
        started_at="2026-11-23T00:00:00Z",
        ended_at="2026-11-23T00:01:00Z",
        state="finished",
        wall_seconds=60.0,
        rounds=tuple(
            RoundSummary(
                round=number,
                accuracy=None,
                loss=None,
                part_losses=(),
                stage_seconds=slow if number == 1 else stages,
                closed_seconds=closed,
            )
            for number, closed in enumerate((30.0, 31.0, 32.0), 1)
        ),
        base_parameters=2_500_000,
        peak_rss_bytes=50_000_000,
    )
    found = rounds.figures_of(CASE, summary)
    assert found["round_seconds"] == 1.0
    assert found["megabytes_per_second"] == pytest.approx(40.0)
    assert found["receive_seconds"] == pytest.approx(0.3)
    assert found["rest_seconds"] == pytest.approx(0.3)
    assert found["peak_over_model"] == pytest.approx(5.0)


def test_seconds_of_rounds_count_from_commit_to_commit() -> None:
    assert round_seconds([5.0, 7.0, 8.0]) == [2.0, 1.0]


def test_every_picture_is_drawn(tmp_path: Path) -> None:
    of_rounds = {f"{stage}_seconds": 0.1 for stage in ("round", *rounds.STAGES)}
    rounds.draw(
        {CASE: {**of_rounds, "megabytes_per_second": 300.0}}, 900.0, tmp_path / "rounds.png"
    )
    peaks = {(model, nodes): 500_000_000 for model in (10, 400) for nodes in (2, 16)}
    memory.draw(peaks, tmp_path / "memory.png")
    seen = {"peak_bytes": 5e8, "step_seconds": 0.1}
    ways = {(512, handoff.OFFLOAD): seen, (512, handoff.PLAIN): seen}
    handoff.draw(ways, "the process", tmp_path / "handoff.png")
    one_side = {("10MB", OURS): against_flower.figures_of(CASE, [Seen([0.1], 100, 400, 0.0)])}
    against_flower.draw(["10MB"], one_side, tmp_path / "flower.png")
    for name in ("rounds", "memory", "handoff", "flower"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
