"""Trackers: what they are told, that nothing is written twice, and that none can hurt a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.hand_node import TOML, opened

from partsum.coordinator.conclude import summarise
from partsum.coordinator.leaderboard import Candidate, Leaderboard, Score
from partsum.coordinator.records import PlannedPart, RoundPlan, RoundResult
from partsum.coordinator.registry import Registry
from partsum.coordinator.run import Run
from partsum.coordinator.summary import Summary
from partsum.coordinator.trackers.event_files import EventFiles
from partsum.coordinator.trackers.mlflow_run import MlflowRun
from partsum.coordinator.trackers.points import new_points
from partsum.coordinator.trackers.tracker import SERIES, Point, Series, TrackedRun, flat
from partsum.coordinator.trackers.tracking import Tracking, chosen
from partsum.coordinator.trackers.wandb_run import WandbRun
from partsum.shared.config import TrackersConfig, parse_config
from partsum.shared.errors import ConfigError
from partsum.shared.messages import Blob, Part, Update

NOTHING = dict.fromkeys(SERIES, 0) | {"handoff": -1}
ABOUT = TrackedRun("run-1", "run", Path(), {"seed": 3, "training": {"betas": [0.9, 0.95]}}, 1e9)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with opened(tmp_path, TOML) as found:
        yield found


def commit(run: Run, round: int, loss: float = 0.5) -> None:
    """A round of two parts, of which the second is missing; it took three seconds."""
    blob = Blob("0" * 32, 1)
    part = PlannedPart(Part(), 0, None, blob, 0, 10, "")
    at = 10.0 * round
    run.store.open_round(RoundPlan(round, "base", (part, part), (0.0, 1.0)), at)
    update = Update(f"r{round}-p0", round, 0, "", 10, loss, 1.0, 10.0, 1, blob)
    run.store.take_update("a", update, at + 2)
    result = RoundResult("base", "d", loss / 2, None, (1,), {"train": 1.0, "commit": 0.1})
    run.store.commit_round(round, result, at + 3, {})


def summary_of(run: Run) -> Summary:
    return summarise(run, Registry({}), "finished", "the run is done")


def test_a_round_and_a_step_become_points_with_what_was_measured(run: Run) -> None:
    for round in range(3):
        commit(run, round)
    run.store.note_curve(0, 40.0, {"loss": None, "validation_loss": 0.4, "accuracy": 0.9})
    run.store.note_curve(20, 50.0, {"loss": float("nan")})
    run.store.note_curve(40, 60.0, {"loss": 0.1})
    points = new_points(run.store, None, {"parts": 2, "handoff": -1, "structures": 0}, 1e9)
    assert [(p.series, p.step, p.at) for p in points] == [
        ("parts", 3, 1e9 + 23),
        ("handoff", 0, 1e9 + 40),
        ("handoff", 40, 1e9 + 60),
    ]
    assert points[0].values == {
        "loss/validation": 0.25,
        "loss/training": 0.5,
        "seconds/train": 1.0,
        "seconds/round": 3.0,
        "updates": 1.0,
        "missing": 1.0,
    }
    assert points[1].values == {"loss/validation": 0.4, "accuracy": 0.9}


def test_a_structure_has_a_curve_of_its_own(run: Run) -> None:
    scores = tuple(Score(round, 1.0 / (round + 1), 0.5, 0.1) for round in range(2))
    board = Leaderboard(("g",), (Candidate("1", 10, 10, "", scores),), ("1",))
    for round in range(2):
        commit(run, round)
    points = [p for p in new_points(run.store, board, NOTHING, 0.0) if p.series == "structures"]
    assert [p.step for p in points] == [1, 2]
    assert points[1].values == {"loss/1": 0.5, "accuracy/1": 0.5}
    known: Mapping[Series, int] = {**NOTHING, "structures": 2, "parts": 2}
    assert new_points(run.store, board, known, 0.0) == []


def scalars(folder: Path, name: str) -> list[tuple[int, float, float]]:
    """A curve as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), purge_orphaned_data=True)
    found.Reload()
    return [(e.step, round(e.value, 6), e.wall_time) for e in found.Scalars(name)]


def points(*steps: int) -> list[Point]:
    return [Point("parts", step, 1e9 + step, {"loss/validation": 1.0 / step}) for step in steps]


def test_tensorboard_files_go_on_after_a_crash_and_show_no_step_twice(tmp_path: Path) -> None:
    first = EventFiles(str(tmp_path))
    folder = Path(first.begin(ABOUT, None, NOTHING))
    assert folder == tmp_path / "run-1"
    first.write(points(1, 2, 3))  # and dies here, before it is noted that 3 is written
    again = EventFiles(str(tmp_path))
    assert again.begin(ABOUT, str(folder), {**NOTHING, "parts": 2}) == str(folder)
    again.write(points(3, 4))
    again.end("finished", {"accuracy": 0.9})
    curve = scalars(folder / "parts", "loss/validation")
    assert curve == [(step, round(1.0 / step, 6), 1e9 + step) for step in (1, 2, 3, 4)]
    assert scalars(folder / "parts", "result/accuracy")[0][1] == 0.9


class Recorder:
    """A tracker that remembers what it was told; told so, it fails, or takes its time."""

    name = "recorder"

    def __init__(self, fails: bool = False, slow: threading.Event | None = None) -> None:
        self.fails = fails
        self.slow = slow
        self.steps: list[tuple[str, int]] = []
        self.known: str | None = None
        self.state = ""

    def begin(self, run: TrackedRun, known: str | None, positions: Mapping[Series, int]) -> str:
        self.known = known
        return known or "id-7"

    def write(self, points: Sequence[Point]) -> None:
        if self.slow is not None:
            self.slow.wait(30)
        if self.fails:
            raise ConnectionError("no route\nto the server")
        self.steps += [(point.series, point.step) for point in points]

    def end(self, state: str, results: Mapping[str, float]) -> None:
        self.state = state


def followed(run: Run, recorder: Recorder) -> None:
    tracking = Tracking(run, [recorder])
    tracking.start()
    tracking.end(summary_of(run))


def test_a_resumed_run_goes_on_with_the_same_tracker_s_run(run: Run) -> None:
    first, second, third = Recorder(), Recorder(), Recorder()
    commit(run, 0)
    followed(run, first)
    commit(run, 1)
    run.store.note_curve(5, 40.0, {"loss": 1.0})
    followed(run, second)
    followed(run, third)
    assert (first.known, first.steps) == (None, [("parts", 1)])
    assert (second.known, second.steps) == ("id-7", [("parts", 2), ("handoff", 5)])
    assert (third.known, third.steps) == ("id-7", [])
    assert third.state == "finished"


def test_rounds_that_were_taken_back_come_again(run: Run) -> None:
    for round in range(3):
        commit(run, round)
    followed(run, Recorder())
    run.store.roll_back(1, 50.0, "a file was damaged")
    again = Recorder()
    tracking = Tracking(run, [again])
    commit(run, 1)
    tracking.start()
    tracking.end(summary_of(run))
    assert again.steps == [("parts", 2)]


def test_a_tracker_that_fails_is_warned_of_once_and_the_others_go_on(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Recorder(fails=True), Recorder()
    bad.name = "bad"
    tracking = Tracking(run, [bad, good])
    tracking.start()
    commit(run, 0)
    commit(run, 1)
    with caplog.at_level(logging.WARNING):
        tracking.end(summary_of(run))
    said = [record.getMessage() for record in caplog.records if "is off" in record.getMessage()]
    assert said == ["bad is off for the rest of this run, which goes on: no route to the server"]
    assert [step for _, step in good.steps] == [1, 2]


def test_a_tracker_that_hangs_holds_up_the_end_for_a_moment_only(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partsum.coordinator.trackers.tracking._END_SECONDS", 0.2)
    hangs = threading.Event()
    commit(run, 0)
    tracking = Tracking(run, [Recorder(slow=hangs)])
    tracking.start()
    try:
        tracking.end(summary_of(run))
        assert "recorder is slow, and did not get the last of the run" in caplog.text
    finally:
        hangs.set()


def test_a_tracker_whose_package_is_missing_says_what_to_install(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    tracking = Tracking(run, chosen(TrackersConfig(wandb="project")))
    tracking.start()
    tracking.end(summary_of(run))
    assert "wandb is not installed: pip install 'partsum[wandb]'" in caplog.text


def test_the_config_says_which_trackers_there_are() -> None:
    assert chosen(TrackersConfig()) == []
    all_of_them = TrackersConfig(tensorboard="logs", mlflow="http://host:5000", wandb="team/p")
    assert [tracker.name for tracker in chosen(all_of_them)] == ["tensorboard", "mlflow", "wandb"]
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD"):
        parse_config('[trackers]\nmlflow = "https://me:secret@host"', "run.toml")


def test_a_config_is_told_in_one_level() -> None:
    assert flat(ABOUT.config) == {"seed": 3, "training.betas": "[0.9, 0.95]"}


def test_mlflow_has_one_run_over_a_restart_and_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="pip install 'partsum[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    first, again = MlflowRun(uri), MlflowRun(uri)
    known = first.begin(ABOUT, None, NOTHING)
    first.write(points(1, 2, 3))  # and dies here, before it is noted that 3 is written
    assert again.begin(ABOUT, known, {**NOTHING, "parts": 2}) == known
    again.write(points(3, 4))
    again.end("stopped", {"accuracy": 0.9})
    client = mlflow.MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(known, "parts/loss/validation")
    told = [(metric.step, metric.timestamp) for metric in history]
    assert told == [(step, 1000 * (10**9 + step)) for step in (1, 2, 3, 4)]
    found = client.get_run(known)
    assert found.info.status == "KILLED"
    assert found.data.params["training.betas"] == "[0.9, 0.95]"
    assert found.data.metrics["result/accuracy"] == 0.9


def test_wandb_offline_writes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'partsum[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = WandbRun("project")
    known = tracker.begin(replace(ABOUT, folder=tmp_path), None, NOTHING)
    tracker.write(points(1, 2))
    tracker.end("finished", {"accuracy": 0.9})
    assert known == "run-1"
    assert list(tmp_path.glob("wandb/offline-run-*/run-run-1.wandb"))
