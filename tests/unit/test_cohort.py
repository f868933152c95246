"""Who stands out of a round: as far as the bound says, and never because others did nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from partsum.coordinator.cohort import Change, outliers
from partsum.coordinator.contribution import Tensors
from partsum.coordinator.origin import Origin
from partsum.coordinator.updates import check_update
from partsum.shared.encoding import Shapes
from partsum.shared.tensors import save_tensors


def changes(*means: float) -> dict[int, Change]:
    """Updates of one width, by their mean change."""
    return {k: Change(mean * 10, 100, f"layer{k}") for k, mean in enumerate(means)}


def found(*means: float, before: tuple[float, ...] = (), bound: float = 10.0) -> list[int]:
    return [outlier.part for outlier in outliers(changes(*means), before, bound)]


def test_an_update_far_beyond_the_median_of_the_others_stands_out() -> None:
    assert found(1.0, 1.2, 11.9, 0.9) == [2]
    assert found(1.0, 1.2, 9.9, 0.9) == []
    assert found(1.0, 1.2, 9.9, 0.9, bound=5.0) == [2]
    assert found(1.0, 1.2, math.inf, 0.9) == [2]


def test_the_reason_names_the_tensor_and_the_numbers() -> None:
    reason = outliers(changes(1.0, 1.0, 40.0), (), 10.0)[0].reason
    assert "40 times as much as the median" in reason
    assert "tensor 'layer2' most of all" in reason
    assert "merge.norm_bound lets 10 times pass" in reason


def test_two_that_stand_out_do_not_hide_each_other() -> None:
    assert found(1.0, 500.0, 1.1, 400.0, 0.9) == [1, 3]


def test_a_bound_of_zero_lets_everything_pass() -> None:
    assert found(1.0, 1.0, 1e30, bound=0.0) == []


def test_parts_of_different_width_are_compared_by_the_change_of_a_weight() -> None:
    """The raw norm of the wide one is 20 times the narrow one's, and nothing is wrong with it."""
    wide, narrow = Change(2.0, 40_000, "w"), Change(0.1, 100, "w")
    assert wide.mean == narrow.mean
    assert outliers({0: wide, 1: narrow, 2: narrow}, (), 10.0) == []


def test_of_two_updates_nobody_knows_which_is_wrong() -> None:
    assert found(1.0, 100.0) == []
    assert found(100.0) == []


def test_the_last_rounds_stand_by_where_fewer_than_three_are_in() -> None:
    assert found(1.0, 100.0, before=(1.0, 1.1)) == [1]
    assert found(100.0, before=(1.0, 1.1)) == [0]
    assert found(100.0, before=(1.0,)) == []
    # Three can be compared among themselves: the change of a warm-up round does not count.
    assert found(1.0, 1.1, 1.2, before=(0.001, 0.001, 0.001)) == []


def test_who_did_nothing_makes_nobody_else_suspect() -> None:
    assert found(0.0, 0.0, 0.0) == []
    assert found(0.0, 0.0, 1.0) == []
    assert found(0.0, 1.0, 1.1) == []


@given(st.lists(st.floats(1.0, 5.0), min_size=3, max_size=9), st.data())
def test_fewer_than_half_cannot_get_an_honest_update_refused(
    honest: list[float], data: st.DataObject
) -> None:
    """Whatever they send, zero and infinity included."""
    hostile = st.lists(st.floats(0, allow_nan=False), max_size=(len(honest) - 1) // 2)
    means = honest + data.draw(hostile)
    assert not set(found(*means)) & set(range(len(honest)))


def test_the_change_is_measured_where_the_update_is_checked(tmp_path: Path) -> None:
    start = {"w": torch.ones(3, 4), "b": torch.zeros(4), "n": torch.tensor(3)}
    update = {"w": start["w"] + 0.5, "b": torch.full((4,), 2.0), "n": torch.tensor(9)}
    moments = {"w/exp_avg": torch.full((3, 4), 1e6)}
    save_tensors(tmp_path / "update", update | moments, durable=False)
    shapes: Shapes = {n: (t.dtype, tuple(t.shape)) for n, t in (update | moments).items()}
    change = check_update(tmp_path / "update", shapes, Tensors(start), samples=6)
    assert change.norm == pytest.approx(math.sqrt(12 * 0.25 + 4 * 4.0))
    assert (change.weights, change.tensor) == (16, "b")
    gradients = check_update(tmp_path / "update", shapes, Origin(Tensors(start), {"w"}), samples=6)
    assert gradients.norm == pytest.approx(math.sqrt(12 * 2.25 + 4 * 4.0))
    assert gradients.tensor == "w"


def test_a_change_that_overflows_is_infinite_and_no_error(tmp_path: Path) -> None:
    save_tensors(tmp_path / "update", {"w": torch.full((2,), 1.6e38)}, durable=False)
    shapes: Shapes = {"w": (torch.float32, (2,))}
    change = check_update(tmp_path / "update", shapes, Tensors({"w": torch.full((2,), -3e38)}))
    assert change.norm == math.inf
