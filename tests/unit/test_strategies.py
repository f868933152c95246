"""Robust merging: what a few hostile nodes send does not decide, and memory does not grow."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from partsum.coordinator.merge import Contribution, MergeRule, Tensors, merge_state
from partsum.coordinator.strategies.blocks import stacks
from partsum.coordinator.strategies.clip import Clipped, clip_factor
from partsum.coordinator.strategies.krum import fitting, ranked, squared_distances
from partsum.coordinator.strategies.middle import merge_middle, middle
from partsum.shared.part import WHOLE, Part, cut_tensors, index_map, region, take
from partsum.shared.tensors import TensorFile, save_tensors
from partsum.shared.width import Slot, WidthGroup, Widths

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
NOBODY = Widths(())


def rows(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def shares_of(states: list[dict[str, Tensor]]) -> list[Contribution]:
    return [Contribution(WHOLE, Tensors(state), 1.0) for state in states]


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Honest updates, hostile ones, and how many of these there may be."""
    hostile = draw(st.integers(1, 3))
    count = draw(st.integers(hostile + 1, 5))
    size = draw(st.integers(1, 4))
    one = st.lists(FLOATS, min_size=size, max_size=size)
    honest = draw(st.lists(one, min_size=count, max_size=count))
    bad = draw(st.lists(one, min_size=hostile, max_size=hostile))
    return rows(honest), rows(bad), hostile


@given(crowds())
def test_median_and_trimmed_mean_stay_within_what_honest_nodes_said(
    drawn: tuple[Tensor, Tensor, int],
) -> None:
    honest, bad, hostile = drawn
    stack = torch.cat([honest, bad])
    for cut in (hostile, len(stack)):
        found = middle(stack, cut)
        assert (found >= honest.amin(0)).all()
        assert (found <= honest.amax(0)).all()


@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=6), st.randoms())
def test_the_order_of_nodes_does_not_change_a_bit(
    values: list[list[float]], random: Random
) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    for cut in (0, 1, len(values)):
        once, again = middle(rows(values), cut), middle(rows(shuffled), cut)
        assert once.numpy().tobytes() == again.numpy().tobytes()


@given(st.lists(FLOATS, min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 7))
def test_identical_updates_give_exactly_that_value(
    values: list[float], count: int, cut: int
) -> None:
    assert torch.equal(middle(rows([values] * count), cut), rows([values])[0])


def test_a_median_is_torchs_and_numpys() -> None:
    stack = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(middle(stack, 5), stack.median(0).values)
    torch.testing.assert_close(middle(stack[:4], 4), stack[:4].quantile(0.5, dim=0))
    torch.testing.assert_close(middle(stack, 0), stack.mean(0))
    ordered = stack.sort(0).values
    torch.testing.assert_close(middle(stack, 1), ordered[1:4].mean(0))


def test_where_too_few_hold_an_element_the_trimmed_mean_is_their_median_mean_or_value() -> None:
    nan = torch.nan
    stack = rows([[1, 1, 1, nan], [2, 5, nan, nan], [9, nan, nan, nan]])
    found = middle(stack, 2)
    assert found[:3].tolist() == [2.0, 3.0, 1.0]
    assert found[3].isnan()


def nested() -> tuple[Widths, dict[str, Tensor], list[Part]]:
    widths = Widths((WidthGroup("g", 6, "hidden", (Slot("w", 0), Slot("v", 1), Slot("b", 0))),))
    generator = torch.Generator().manual_seed(3)
    state = {
        "w": torch.randn(6, 2, generator=generator),
        "v": torch.randn(2, 6, generator=generator),
        "b": torch.randn(6, generator=generator),
        "s": torch.randn((), generator=generator),
        "c": torch.randn(5, generator=generator),
    }
    return widths, state, [Part({"g": (0, 2)}), Part({"g": (0, 1, 2, 4)}), Part({"g": (1, 2, 4)})]


@pytest.mark.parametrize("budget", [1, 50, 1 << 20])
def test_parts_that_overlap_in_part_are_merged_alike_in_blocks_of_any_size(
    tmp_path: Path, budget: int
) -> None:
    widths, old, parts = nested()
    expected: dict[str, list[list[float]]]
    shares, expected = [], {name: [[] for _ in t.reshape(-1)] for name, t in old.items()}
    held = index_map(widths, parts[0])
    maps = [index_map(widths, part) for part in parts]
    assert held.keys() == maps[1].keys()
    for k, part in enumerate(parts):
        whole = {name: t + 10**k for name, t in old.items()}
        save_tensors(tmp_path / f"{k}", cut_tensors(whole, widths, part), durable=False)
        shares.append(Contribution(part, TensorFile(tmp_path / f"{k}"), 1.0))
        for name, tensor in whole.items():
            places = torch.arange(tensor.numel()).reshape(tensor.shape)
            for place in cut_tensors({name: places}, widths, part)[name].reshape(-1).tolist():
                expected[name][place].append(float(tensor.reshape(-1)[place]))
    for name, tensor in old.items():
        merged = merge_middle(name, tensor, shares, maps, 3, budget).reshape(-1)
        for place, values in enumerate(expected[name]):
            if not values:
                assert merged[place] == tensor.reshape(-1)[place]
                continue
            median = float(torch.tensor(values, dtype=torch.float64).quantile(0.5))
            assert merged[place] == pytest.approx(median, rel=1e-6)
    for share in shares:
        share.tensors.close()  # type: ignore[attr-defined]


def test_a_stack_keeps_to_its_budget_or_to_one_number_of_each() -> None:
    shares = shares_of([{"w": torch.zeros(100, 8)} for _ in range(5)])
    maps: list[dict[str, dict[int, Tensor]]] = [{}] * 5
    for budget in (1, 1000, 10_000, 1 << 20):
        found = list(stacks("w", (100, 8), shares, maps, torch.float32, budget))
        assert sum(stack[0].numel() for _, stack in found) == 800
        assert max(stack.nbytes for _, stack in found) <= max(budget, 5 * 4)


def test_one_long_row_is_stacked_in_pieces_unless_it_is_cut(tmp_path: Path) -> None:
    """A position embedding is (1, length, width): whole it would take memory for every node."""
    old, budget = torch.zeros(1, 30, 8), 3 * 4 * 50
    kept: dict[int, Tensor]
    for kept in ({}, {2: torch.arange(2, 5)}, {1: torch.tensor([3, 7, 8])}):
        maps: list[dict[str, dict[int, Tensor]]] = [{"w": kept}] * 3
        shares = []
        for k in range(3):
            value = take(torch.arange(240.0).view(1, 30, 8) * (k + 1), kept)
            save_tensors(tmp_path / f"{k}", {"w": value}, durable=False)
            shares.append(Contribution(Part({}), TensorFile(tmp_path / f"{k}"), 1.0))
        found = list(stacks("w", old.shape, shares, maps, torch.float32, budget))
        assert max(stack[0].numel() for _, stack in found) == (240 if 1 in kept else 48)
        merged = merge_middle("w", old, shares, maps, 3, budget)
        expected = old.clone()
        middle = torch.arange(240.0).view(1, 30, 8) * 2
        expected[region(old, kept)] = take(middle, kept)
        assert torch.equal(merged, expected)
        for share in shares:
            share.tensors.close()  # type: ignore[attr-defined]


def test_a_tensor_with_nothing_in_it_has_a_middle_too() -> None:
    shares = shares_of([{"w": torch.zeros(5, 0)} for _ in range(3)])
    assert merge_middle("w", torch.zeros(5, 0), shares, [{}] * 3, 1).shape == (5, 0)


def test_slices_that_one_node_alone_holds_are_taken_as_they_are() -> None:
    """Mode residual: only shared tensors can be robust."""
    widths = Widths((WidthGroup("g", 4, "hidden", (Slot("w", 0),)),))
    old = {"w": torch.zeros(4), "shared": torch.zeros(1)}
    shares = [
        Contribution(Part({"g": units}), Tensors({"w": rows([w])[0], "shared": rows([[s]])[0]}), 1)
        for units, w, s in (((0, 3), [1.0, 2.0], 1.0), ((1,), [3.0], 2.0), ((2,), [4.0], 99.0))
    ]
    merged = merge_state(old, shares, widths, MergeRule(cut=3))
    assert merged["w"].tolist() == [1.0, 3.0, 4.0, 2.0]
    assert merged["shared"].tolist() == [2.0]


def test_integers_and_dtypes_are_kept() -> None:
    states = [
        {"n": torch.tensor(k), "h": torch.tensor([k], dtype=torch.bfloat16)} for k in (1, 2, 7)
    ]
    merged = merge_state(states[0], shares_of(states), NOBODY, MergeRule(cut=3))
    assert merged["n"] == 7
    assert (merged["h"].dtype, merged["h"].item()) == (torch.bfloat16, 2.0)


def scattered(hostile: int, seed: int) -> list[dict[str, Tensor]]:
    """Honest updates close to each other, then hostile ones far away from them and each other."""
    generator = torch.Generator().manual_seed(seed)
    states = []
    for k in range(2 * hostile + 3):
        far = 0.0 if k < hostile + 3 else 5.0 * (k + 1)
        noise = torch.randn(4, 30, generator=generator)
        states.append({"a": noise + far, "b": noise[0] - far})
    return states


def test_distances_are_summed_over_tensors_and_blocks() -> None:
    states = scattered(1, 0)
    found = squared_distances({"a": (4, 30), "b": (30,)}, shares_of(states))
    flat = torch.stack([torch.cat([s["a"].reshape(-1), s["b"]]).double() for s in states])
    torch.testing.assert_close(found, torch.cdist(flat, flat) ** 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hostile", [1, 2, 3])
def test_krum_trusts_honest_updates_before_hostile_ones(hostile: int) -> None:
    for seed in range(5):
        states = scattered(hostile, seed)
        order = ranked(squared_distances({"a": (4, 30), "b": (30,)}, shares_of(states)), hostile)
        assert set(order[: hostile + 3]) == set(range(hostile + 3))


def test_krum_settles_for_what_so_few_updates_allow() -> None:
    assert [fitting(n, 2) for n in range(1, 9)] == [0, 0, 0, 0, 1, 1, 2, 2]
    for count in (1, 2, 3):
        distances = 1.0 - torch.eye(count, dtype=torch.float64)
        assert ranked(distances, 1) == list(range(count))


def test_a_clipped_update_is_shortened_towards_its_origin_and_otherwise_untouched() -> None:
    start = {"w": torch.tensor([1.0, 1.0]), "n": torch.tensor(1)}
    update = {"w": torch.tensor([4.0, 5.0]), "n": torch.tensor(8)}
    assert clip_factor(5.0, 2.5) == 0.5
    assert clip_factor(5.0, 7.0) == clip_factor(0.0, 1.0) == 1.0
    half = Clipped(Tensors(update), Tensors(start), 0.5)
    assert half.read("w").tolist() == [2.5, 3.0]
    assert half.read("n") == 8
    assert Clipped(Tensors(update), Tensors(start), 1.0).read("w") is update["w"]
