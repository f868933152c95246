"""Which units are kept: by strength, by chance, or both; always the share that was asked for."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from partsum.coordinator.planner.selection import select_units
from partsum.shared.config.study import Selection
from partsum.shared.width import WidthGroup, Widths

WIDTHS = Widths((WidthGroup("up", 8, "hidden", ()), WidthGroup("stream", 4, "stream", ())))
SCORES = {"up": torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3, 0.8, 0.2, 0.6])}
ways = st.sampled_from(get_args(Selection))


def kept(how: Selection, keep: float = 0.5, seed: int = 0) -> tuple[int, ...]:
    return select_units(SCORES, WIDTHS, keep, how, seed).units["up"]


def test_strong_units_are_those_of_the_highest_scores_and_weak_ones_the_others() -> None:
    assert kept("strong") == (1, 3, 5, 7)
    assert kept("weak") == (0, 2, 4, 6)


def test_strong_and_weak_is_half_the_strongest_and_half_drawn_from_the_others() -> None:
    drawn = {kept("strong_weak", seed=seed) for seed in range(20)}
    assert all({1, 5} <= set(units) for units in drawn)
    assert set().union(*drawn) == set(range(8))
    assert kept("strong_weak", keep=1 / 8) == (1,)


def test_random_units_follow_the_seed_and_not_the_scores() -> None:
    turned = {"up": -SCORES["up"]}
    assert select_units(turned, WIDTHS, 0.5, "random", 3).units["up"] == kept("random", seed=3)
    assert len({kept("random", seed=seed) for seed in range(20)}) > 5


def test_units_of_equal_scores_are_taken_in_their_order() -> None:
    same = {"up": torch.zeros(8)}
    assert select_units(same, WIDTHS, 0.25, "strong", 0).units["up"] == (0, 1)


@given(
    ways,
    st.floats(0.001, 1),
    st.integers(0, 99),
    st.lists(st.floats(-9, 9), min_size=8, max_size=8),
)
def test_each_selection_keeps_the_share_of_scored_groups_and_leaves_the_others_whole(
    how: Selection, keep: float, seed: int, raw: list[float]
) -> None:
    scores = {"up": torch.tensor(raw)}
    part = select_units(scores, WIDTHS, keep, how, seed)
    assert part.units.keys() == {"up"}
    units = part.units["up"]
    assert len(units) == max(1, round(8 * keep))
    assert list(units) == sorted(set(units))
    assert set(units) <= set(range(8))
    assert select_units(scores, WIDTHS, keep, how, seed) == part


@pytest.mark.parametrize("keep", [0.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused_with_its_value(keep: float) -> None:
    with pytest.raises(ValueError, match=f"keep is {keep:g}"):
        kept("strong", keep)


def test_scores_of_another_width_and_unknown_selections_are_refused() -> None:
    with pytest.raises(ValueError, match="'up' has 8 units, but 3 scores"):
        select_units({"up": torch.ones(3)}, WIDTHS, 0.5, "strong", 0)
    with pytest.raises(ValueError, match="no selection 'best'"):
        select_units(SCORES, WIDTHS, 0.5, "best", 0)  # type: ignore[arg-type]
