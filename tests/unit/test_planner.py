"""Who trains which units: shares that add up, parts that are complementary."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from partsum.coordinator.planner import Ranking, equal_fractions, measured_fractions, plan_parts
from partsum.coordinator.planner.fractions import split_units
from partsum.shared.config import PartsConfig
from partsum.shared.errors import WidthError
from partsum.shared.part import WHOLE, Part
from partsum.shared.width import WidthGroup, Widths

BLOCK = PartsConfig()
RESIDUAL = PartsConfig(mode="residual")
RELEVANCE = PartsConfig(planner="relevance", mode="residual")
modes: st.SearchStrategy[Literal["block", "residual"]] = st.sampled_from(["block", "residual"])


def widths_of(hidden: list[int], stream: list[int]) -> Widths:
    groups = [WidthGroup(f"hidden{i}", n, "hidden", ()) for i, n in enumerate(hidden)]
    groups += [WidthGroup(f"stream{i}", n, "stream", ()) for i, n in enumerate(stream)]
    return Widths(tuple(groups), scales=("down.scale",))


@st.composite
def fractions(draw: st.DrawFn, most: int = 6) -> list[float]:
    raw = draw(st.lists(st.floats(0.01, 1), min_size=1, max_size=most))
    return [share / sum(raw) for share in raw]


@st.composite
def plans(draw: st.DrawFn) -> tuple[Widths, list[float]]:
    shares = draw(fractions())
    units = st.lists(st.integers(len(shares), 40), min_size=1, max_size=3)
    return widths_of(draw(units), draw(units)), shares


def assert_complementary(group: WidthGroup, parts: list[Part]) -> None:
    kept = [part.units[group.name] for part in parts]
    assert all(units and list(units) == sorted(set(units)) for units in kept)
    assert sorted(unit for units in kept for unit in units) == list(range(group.units))


@given(plans())
def test_parts_of_mode_block_are_contiguous_slices_that_cover_every_group(
    plan: tuple[Widths, list[float]],
) -> None:
    widths, shares = plan
    parts = plan_parts(BLOCK, widths, shares, seed=1, round=0)
    for group in widths.groups:
        assert_complementary(group, parts)
        in_order = [unit for part in parts for unit in part.units[group.name]]
        assert in_order == list(range(group.units))


@given(plans(), st.integers(0, 99), st.integers(1, 99))
def test_parts_of_mode_block_are_the_same_in_every_round_and_for_every_seed(
    plan: tuple[Widths, list[float]], round: int, seed: int
) -> None:
    widths, shares = plan
    first = plan_parts(BLOCK, widths, shares, seed=0, round=0)
    assert plan_parts(BLOCK, widths, shares, seed=seed, round=round) == first


@given(plans(), st.integers(0, 99), st.integers(0, 99))
def test_parts_of_mode_residual_cover_hidden_groups_only_and_follow_the_seed(
    plan: tuple[Widths, list[float]], seed: int, round: int
) -> None:
    widths, shares = plan
    parts = plan_parts(RESIDUAL, widths, shares, seed, round)
    hidden = [group for group in widths.groups if group.depth == "hidden"]
    assert all(part.units.keys() == {group.name for group in hidden} for part in parts)
    for group in hidden:
        assert_complementary(group, parts)
    assert plan_parts(RESIDUAL, widths, shares, seed, round) == parts


def test_units_of_mode_residual_are_drawn_anew_each_round_and_for_each_seed() -> None:
    widths = widths_of([40, 40], [])
    drawn = [
        plan_parts(RESIDUAL, widths, equal_fractions(4), seed, round)[0]
        for seed in range(3)
        for round in range(3)
    ]
    assert len(set(drawn)) == 9
    assert drawn[0].units["hidden0"] != drawn[0].units["hidden1"]


def test_units_that_are_not_divisible_by_the_parts_are_split_by_whole_units() -> None:
    parts = plan_parts(BLOCK, widths_of([6], [64]), equal_fractions(4), 0, 0)
    assert [len(part.units["hidden0"]) for part in parts] == [2, 2, 1, 1]
    assert [len(part.units["stream0"]) for part in parts] == [16] * 4


def test_federated_averaging_gives_everyone_the_base() -> None:
    config = PartsConfig(planner="full")
    assert plan_parts(config, widths_of([1], []), equal_fractions(3), 0, 0) == [WHOLE] * 3


def ranked(widths: Widths, shared: float, seed: int) -> Ranking:
    """Scores of no order for each hidden group; none are equal."""
    hidden = [group for group in widths.groups if group.depth == "hidden"]
    scores = {}
    for group in hidden:
        scores[group.name] = [float(unit) for unit in range(group.units)]
        random.Random(f"{seed}/{group.name}").shuffle(scores[group.name])
    return Ranking(scores, shared)


@given(plans(), st.floats(0, 0.4), st.integers(0, 99), st.integers(0, 9))
def test_parts_by_relevance_share_the_strongest_units_and_are_complementary_beyond(
    plan: tuple[Widths, list[float]], shared: float, seed: int, round: int
) -> None:
    widths, shares = plan
    ranking = ranked(widths, shared, seed)
    strong = {g.name: set(ranking.order(g)[: ranking.strong(g)]) for g in widths.groups}
    assume(all(g.units - ranking.strong(g) >= len(shares) for g in widths.groups))
    parts = plan_parts(RELEVANCE, widths, shares, seed, round, ranking)
    for group in widths.groups:
        if group.depth == "stream":
            assert all(group.name not in part.units for part in parts)
            continue
        kept = [set(part.units[group.name]) for part in parts]
        assert all(strong[group.name] <= units for units in kept)
        others = [unit for units in kept for unit in units - strong[group.name]]
        assert sorted([*others, *strong[group.name]]) == list(range(group.units))
        sizes = split_units(group.units - len(strong[group.name]), shares)
        assert [len(units) - len(strong[group.name]) for units in kept] == sizes
    assert plan_parts(RELEVANCE, widths, shares, seed, round, ranking) == parts


def test_each_part_gets_its_share_of_strong_units_and_other_ones_each_round() -> None:
    widths = widths_of([40], [])
    ranking = ranked(widths, 0.0, 0)
    order = ranking.order(widths.groups[0])
    drawn = set()
    for round in range(5):
        parts = plan_parts(RELEVANCE, widths, equal_fractions(4), 0, round, ranking)
        drawn.add(parts[0])
        for first in range(0, 40, 4):  # of any four that are neighbours in strength, one each
            band = set(order[first : first + 4])
            assert all(len(band & set(part.units["hidden0"])) == 1 for part in parts)
    assert len(drawn) == 5


def test_a_part_of_half_the_width_gets_half_of_the_strong_units() -> None:
    widths = widths_of([40], [])
    ranking = ranked(widths, 0.0, 0)
    strongest = set(ranking.order(widths.groups[0])[:8])
    parts = plan_parts(RELEVANCE, widths, [0.5, 0.25, 0.25], 0, 0, ranking)
    held = [len(strongest & set(part.units["hidden0"])) for part in parts]
    assert held[0] in {3, 4, 5}
    assert min(held[1:]) >= 1


def test_units_that_nobody_ranked_are_all_alike() -> None:
    widths = widths_of([40], [])
    parts = plan_parts(RELEVANCE, widths, equal_fractions(4), 0, 0, Ranking({}, 0.1))
    assert [len(part.units["hidden0"]) for part in parts] == [13] * 4


def test_too_few_units_beside_the_shared_ones_are_refused_with_the_numbers() -> None:
    with pytest.raises(WidthError, match=r"'hidden0' has 8 units, of which all parts share 6"):
        plan_parts(RELEVANCE, widths_of([8], []), equal_fractions(4), 0, 0, Ranking({}, 0.75))


@pytest.mark.parametrize("config", [BLOCK, RESIDUAL], ids=["block", "residual"])
def test_more_parts_than_units_is_refused_with_the_group_and_the_numbers(
    config: PartsConfig,
) -> None:
    with pytest.raises(WidthError, match=r"'hidden1' has 3 units.*4 parts.*parts.count to 3"):
        plan_parts(config, widths_of([8, 3], []), equal_fractions(4), 0, 0)


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        (widths_of([], [8]), "no hidden width groups"),
        (Widths(widths_of([8], []).groups), "with_scales"),
        (Widths(widths_of([8], []).groups, residual_refusal="it is too hot"), "it is too hot"),
    ],
    ids=["no hidden group", "no scales", "the rule's own word"],
)
def test_mode_residual_is_refused_where_nothing_scales_a_branch(widths: Widths, said: str) -> None:
    with pytest.raises(WidthError, match=rf"{said}.*docs/widths.md"):
        plan_parts(RESIDUAL, widths, equal_fractions(2), 0, 0)


@given(fractions(), st.integers(6, 500))
def test_units_are_split_into_whole_numbers_near_their_shares(
    shares: list[float], units: int
) -> None:
    sizes = split_units(units, shares)
    assert sum(sizes) == units
    assert min(sizes) >= 1
    assert all(
        size <= max(1, int(units * share) + 1) for size, share in zip(sizes, shares, strict=True)
    )
    by_share = sorted(range(len(shares)), key=lambda k: shares[k])
    for small, large in pairwise(by_share):
        assert sizes[small] <= sizes[large] or shares[small] == shares[large]


measures = st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 2**40)), min_size=1, max_size=6)


@given(measures, modes)
def test_measured_shares_add_up_to_one(
    nodes: list[tuple[float, int]], mode: Literal["block", "residual"]
) -> None:
    shares = measured_fractions([g for g, _ in nodes], [m for _, m in nodes], mode)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0


@given(measures, modes)
def test_a_node_with_no_less_of_anything_gets_no_smaller_a_share(
    nodes: list[tuple[float, int]], mode: Literal["block", "residual"]
) -> None:
    shares = measured_fractions([g for g, _ in nodes], [m for _, m in nodes], mode)
    for (g, m), share in zip(nodes, shares, strict=True):
        for (other_g, other_m), other in zip(nodes, shares, strict=True):
            assert not (g >= other_g and m >= other_m) or share >= other


def test_equal_nodes_get_equal_shares_and_four_times_the_speed_twice_the_width() -> None:
    assert measured_fractions([5, 5], [10, 10], "block") == [0.5, 0.5]
    assert measured_fractions([1, 4], [10, 10], "block") == pytest.approx([1 / 3, 2 / 3])
    assert measured_fractions([1, 4], [10, 10], "residual") == pytest.approx([0.2, 0.8])


def test_memory_bounds_what_a_fast_node_gets() -> None:
    fast_but_small = measured_fractions([1000, 1], [1, 99], "block")
    assert fast_but_small[0] == pytest.approx(2 / (1 + 99**0.5))  # twice its share of memory
    assert measured_fractions([1000, 1], [1, 99], "residual") == pytest.approx([0.02, 0.98])


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -1.0])
def test_a_node_that_reports_nonsense_as_its_speed_spoils_nothing(figure: float) -> None:
    shares = measured_fractions([figure, 10.0, 10.0], [8, 8, 8], "block")
    assert sum(shares) == pytest.approx(1)
    assert shares[0] < shares[1] == shares[2]
