"""`partsum study` before and while it runs: what is refused, and how far it says that it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from partsum.coordinator.dry_run import show_plan
from partsum.coordinator.local import cast_text
from partsum.coordinator.study.config import study_run
from partsum.coordinator.study_command import Follower, StudyOptions, run_study
from partsum.shared.config import StudyConfig, parse_config
from partsum.shared.errors import EXIT_OK, ConfigError, StateError
from partsum.shared.messages import RunStatus

TINY = """
task = { name = "partsum.shared.tasks:digits", options = { widths = [8, 8] } }
[study]
keep = [1.0, 0.5]
epochs = 0.1
"""


def status(phase: str, round: int, parts_in: int) -> RunStatus:
    nan = float("nan")
    return RunStatus(
        run="mine",
        phase=phase,  # type: ignore[arg-type]
        reason="waiting for nodes",
        round=round,
        rounds=2,
        parts_in=parts_in,
        parts=2,
        loss=nan,
        accuracy=nan,
        handoff_step=0,
        handoff_steps=0,
        elapsed_seconds=1.0,
        bytes_sent=0,
        bytes_received=0,
        nodes=(),
        folder="runs/mine",
    )


def test_a_study_counts_its_bases_before_its_cells() -> None:
    study = StudyConfig(keep=[0.5], selections=["strong"], starts=["tuned"], seeds=[0, 1])
    follower = Follower(study)  # two bases, and a model of each
    assert follower.stand(status("waiting", 0, 0)) == (0, 4, "waiting for nodes")
    assert follower.stand(status("parts", 0, 1)) == (1, 4, "bases")
    assert follower.stand(status("parts", 1, 1)) == (3, 4, "sweep")
    assert follower.stand(status("finished", 2, 0)) == (4, 4, "finished")
    scratch = Follower(StudyConfig(keep=[0.5, 0.25], starts=["scratch"], seeds=[0]))
    assert scratch.stand(status("parts", 0, 1)) == (1, 2, "sweep")


def test_nodes_that_could_not_get_in_are_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[server]\nauth = "tokens"\n')
    with pytest.raises(ConfigError, match="nodes that are started here have no credentials"):
        run_study(StudyOptions(path, nodes=2))
    with pytest.raises(ConfigError, match="--nodes -1: give 0 to wait"):
        run_study(StudyOptions(path, nodes=-1))


def test_a_dry_run_shows_every_kind_of_model_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f'folder = "{tmp_path}/runs"\n{TINY}')
    assert run_study(StudyOptions(path, nodes=2, dry_run=True)) == EXIT_OK
    said = capsys.readouterr().out
    assert "bases: 1" in said
    assert "tuned   strong+weak" in said
    assert "with 2 nodes about" in said
    assert not (tmp_path / "runs").exists()


def test_partsum_plan_says_where_a_study_shows_its_cost(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(study_run(parse_config(TINY), path))
    with pytest.raises(ConfigError, match="partsum study --dry-run"):
        show_plan(path, as_json=False)


def test_partsum_plan_of_a_runs_config_with_a_study_says_whole_what_it_is_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(TINY)
    assert show_plan(path, as_json=False) == EXIT_OK
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: [study] is for `partsum study`" in said
    assert "--dry-run" in said


def test_what_is_started_is_said_in_the_right_number() -> None:
    assert cast_text(0) == "a coordinator"
    assert cast_text(1) == "a coordinator and 1 node process"
    assert cast_text(2) == "a coordinator and 2 node processes"


def test_a_study_that_cannot_be_written_or_has_no_base_is_refused_in_words(tmp_path: Path) -> None:
    path, taken = tmp_path / "study.toml", tmp_path / "taken"
    taken.write_text("a file")
    path.write_text(f'folder = "{taken}"\n{TINY}')
    with pytest.raises(StateError, match=r"cannot write .*; change folder in"):
        run_study(StudyOptions(path, nodes=1))
    path.write_text(f'folder = "{tmp_path}/runs"\n{TINY}base = "nowhere.safetensors"\n')
    with pytest.raises(ConfigError, match=r"study.base: cannot read .*: No such file"):
        run_study(StudyOptions(path, nodes=1, dry_run=True))
