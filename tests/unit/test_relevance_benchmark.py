"""The benchmark of relevance, on digits: what it notes, and how that is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks import relevance

from partsum.shared.tasks.images import digits


@pytest.fixture
def bench() -> relevance.Bench:
    task = digits(widths=(16, 8))
    return relevance.Bench(task, task.train(), task.validation(), torch.device("cpu"))


def test_weights_that_are_noise_are_pruned_and_stay_so(
    bench: relevance.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relevance, "LESSON", replace(relevance.LESSON, learning_rate=1e-2))
    relevance.weights(bench, 0, epochs=8, more=4)
    found = {name: values[0] for name, values in bench.found.items()}
    assert found.keys() == {"dense", "ard", "noise", "pruned", "tuned"}
    assert found["noise"] > 0.2
    assert found["dense"] > 0.5
    assert found["tuned"] > found["pruned"] + 0.1


def test_every_choice_of_units_is_cut_out_of_one_model_and_trained_alike(
    bench: relevance.Bench,
) -> None:
    relevance.units(bench, 0, epochs=1, more=1)
    rows = {name.partition("/")[0] for name in bench.found}
    assert {"whole", "random", "fresh", "ard strong", "taylor strong_weak"} <= rows
    assert len(rows) == 3 + 4 * 3


def test_a_table_has_a_row_for_each_name_and_means_over_seeds() -> None:
    found = {"whole": [0.5], "random/cut": [0.25, 0.75], "random/tuned": [0.5, 0.5]}
    made = relevance.table("units", found)
    assert made.row_count == 2
    cells = [list(column.cells) for column in made.columns]
    assert cells == [["whole", "random"], ["50.00", ""], ["", "50.00 +- 35.36"], ["", "50.00"]]
