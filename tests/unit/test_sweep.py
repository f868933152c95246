"""Which small models a study trains, on what, in which order, and what its run is asked."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partsum.coordinator.planner.sweep import Cell, cells, draws
from partsum.coordinator.study.config import study_run
from partsum.coordinator.study.estimate import makespan
from partsum.shared.config import RunConfig, StudyConfig, parse_config
from partsum.shared.config.study import Selection, Start
from partsum.shared.errors import ConfigError

SOURCE = Path("somewhere/study.toml")


def some(values: object, most: int = 4) -> st.SearchStrategy[list[object]]:
    return st.lists(st.sampled_from(list(values)), min_size=1, max_size=most, unique=True)  # type: ignore[call-overload]


studies = st.builds(
    StudyConfig,
    keep=some([1.0, 0.5, 0.3, 0.25, 0.1]),
    selections=some(get_args(Selection)),
    data=some([1.0, 0.5, 0.1]),
    starts=some(get_args(Start)),
    seeds=some(range(5)),
)


@given(studies)
def test_every_combination_has_one_cell_and_no_model_is_trained_twice(study: StudyConfig) -> None:
    found = cells(study)
    assert len(set(found)) == len(found)
    for keep, how, data, start, seed in product(
        study.keep, study.selections, study.data, study.starts, study.seeds
    ):
        same = {Cell(start, how, keep, data, seed), Cell(start, None, keep, data, seed)}
        assert len(same & set(found)) == 1
    for cell in found:
        assert (cell.selection is None) == (cell.keep == 1 or cell.start == "scratch")


@given(studies)
def test_the_widest_models_are_trained_first(study: StudyConfig) -> None:
    found = [cell.keep for cell in cells(study)]
    assert found == sorted(found, reverse=True)


@given(studies)
def test_each_draw_of_the_data_is_there_once_and_bases_see_all_of_it(study: StudyConfig) -> None:
    found = draws(study)
    assert len(set(found)) == len(found)
    assert {(cell.data, cell.seed) for cell in cells(study)} <= set(found)
    if study.trains_bases:
        assert {(1.0, seed) for seed in study.seeds} <= set(found)


@given(studies)
def test_a_study_becomes_a_run_of_as_many_parts_that_is_the_same_one_again(
    study: StudyConfig,
) -> None:
    given = RunConfig(name="mine", seed=7, study=study)
    text = study_run(given, SOURCE)
    config = parse_config(text)
    assert config.parts.is_study
    assert config.parts.count == len(cells(study))
    assert config.parts.rounds == (1 if study.starts == ["scratch"] else 2)
    assert (config.name, config.seed, config.study) == ("mine", 7, study)
    assert study_run(config, SOURCE) == text


def test_what_says_how_a_base_is_made_is_left_aside() -> None:
    config = parse_config(
        '[parts]\nplanner = "full"\naggregate = "gradients"\n[training]\nlearning_rate = 0.5\n'
        '[wire]\nup = "float32"\n[rounds]\nheartbeat_seconds = 0.5\n[study]\nkeep = [0.5]\n'
    )
    run = parse_config(study_run(config, SOURCE))
    assert run.parts.aggregate == "weights"
    assert run.training.learning_rate == 0.5
    assert run.rounds.heartbeat_seconds == 0.5
    assert not run.handoff.enabled


def test_a_base_that_is_given_lies_where_the_config_does() -> None:
    config = parse_config('[study]\nbase = "mine.safetensors"\n')
    run = parse_config(study_run(config, SOURCE))
    assert run.study.base == str(Path("somewhere/mine.safetensors").resolve())
    assert run.parts.rounds == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep = [0.0]", "study.keep: Input should be greater than 0 (got 0.0)"),
        ("keep = [1.5]", "study.keep: Input should be less than or equal to 1 (got 1.5)"),
        ("keep = []", "study.keep: "),
        ("seeds = [3, 3]", "study: seeds has 3 twice"),
        ('starts = ["tune"]', "study.starts: "),
        ('selection = ["weak"]', "did you mean 'selections'?"),
        ('starts = ["rewound"]\nbase = "x"', "nobody knows how the base that is given was"),
        ("epochs = 0.0", "study.epochs: "),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[study]\n{text}\n", "mine.toml")
    assert said in str(caught.value)


def test_a_study_does_not_go_with_a_promise_of_privacy() -> None:
    config = parse_config(
        '[parts]\nplanner = "full"\n[privacy]\nnoise_multiplier = 1.0\n[handoff]\nenabled = false\n'
    )
    with pytest.raises(ConfigError, match=r"it cannot keep what \[privacy\] promises"):
        study_run(config, SOURCE)


def test_the_planner_of_a_study_is_refused_where_a_base_is_to_be_made() -> None:
    with pytest.raises(ConfigError, match=r"handoff\.enabled means nothing to it"):
        parse_config('[parts]\nplanner = "study"\n')


def test_nodes_take_the_next_model_as_soon_as_they_are_free() -> None:
    assert makespan([4.0, 3.0, 2.0, 1.0], 2) == 5.0
    assert makespan([4.0, 3.0], 8) == 4.0
    assert makespan([], 2) == 0.0
