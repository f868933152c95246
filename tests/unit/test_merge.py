"""cut and merge are exact inverses, for any shape, dtype and partition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from partsum.coordinator.merge import (
    AVERAGE,
    BLOCK,
    Contribution,
    Tensors,
    are_disjoint,
    merge_files,
    merge_state,
)
from partsum.coordinator.planner.fractions import split_units
from partsum.shared.part import WHOLE, Part, cut_tensors
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors
from partsum.shared.width import Slot, WidthGroup, Widths

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@st.composite
def states(draw: st.DrawFn) -> tuple[dict[str, Tensor], Widths, list[Part]]:
    """A state dict with two width groups, integer and bool buffers, and complementary parts."""
    count = draw(st.integers(1, 4))
    first, second = (draw(st.integers(count, 9)) for _ in range(2))
    block = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    state = {
        "inner": noise(second, first * block * 2),
        "outer": noise(3, second),
        "bias": noise(first * block * 2),
        "shared": noise(5),
        "counter": torch.randint(0, 99, (second,), generator=generator),
        "steps": torch.tensor(draw(st.integers(0, 2**40))),
        "mask": torch.randint(0, 2, (first,), generator=generator).bool(),
        "scale": noise(),
    }
    offsets = (0, first * block)
    widths = Widths(
        (
            WidthGroup(
                "first",
                first,
                "hidden",
                (
                    Slot("inner", 1, block, offsets),
                    Slot("bias", 0, block, offsets),
                    Slot("mask", 0),
                ),
            ),
            WidthGroup(
                "second",
                second,
                "hidden",
                (Slot("inner", 0), Slot("outer", 1), Slot("counter", 0)),
            ),
        ),
        readouts=("outer",),
        scales=("scale",),
    )
    fractions = draw(st.lists(st.floats(0.1, 1), min_size=count, max_size=count))
    units: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
    for group in draw(st.sampled_from([widths.groups, widths.groups[:1]])):
        order = draw(st.permutations(range(group.units)))
        start = 0
        sizes = split_units(group.units, [f / sum(fractions) for f in fractions])
        for k, size in enumerate(sizes):
            units[k][group.name] = tuple(sorted(order[start : start + size]))
            start += size
    return state, widths, [Part(kept) for kept in units]


def contributions(
    state: dict[str, Tensor], widths: Widths, parts: list[Part], weights: list[float]
) -> list[Contribution]:
    return [
        Contribution(part, Tensors(cut_tensors(state, widths, part)), weight)
        for part, weight in zip(parts, weights, strict=True)
    ]


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


@given(states(), st.data())
def test_merging_one_cut_part_back_changes_nothing(
    drawn: tuple[dict[str, Tensor], Widths, list[Part]], data: st.DataObject
) -> None:
    state, widths, parts = drawn
    part = data.draw(st.sampled_from(parts))
    shares = contributions(state, widths, [part], [7])
    assert_same(merge_state(state, shares, widths, AVERAGE), state)


@given(states(), st.data())
def test_merging_all_cut_parts_back_changes_nothing_whatever_their_weights(
    drawn: tuple[dict[str, Tensor], Widths, list[Part]], data: st.DataObject
) -> None:
    state, widths, parts = drawn
    weights = [float(data.draw(st.integers(1, 10**6))) for _ in parts]
    merged = merge_state(state, contributions(state, widths, parts, weights), widths, AVERAGE)
    assert_same(merged, state)


@given(states())
def test_overlapping_equal_contributions_give_exactly_their_value(
    drawn: tuple[dict[str, Tensor], Widths, list[Part]],
) -> None:
    state, widths, parts = drawn
    shares = contributions(state, widths, [WHOLE, *parts, WHOLE], [3.0] * (len(parts) + 2))
    assert_same(merge_state(state, shares, widths, AVERAGE), state)


@given(states())
def test_mode_block_zeroes_what_no_part_holds_and_weighs_the_readout(
    drawn: tuple[dict[str, Tensor], Widths, list[Part]],
) -> None:
    state, widths, parts = drawn
    shares = contributions(state, widths, parts, [1.0] * len(parts))
    merged = merge_state(state, shares, widths, BLOCK)
    for part in parts:
        again, was = cut_tensors(merged, widths, part), cut_tensors(state, widths, part)
        for name in ("inner", "bias", "counter", "mask", "shared", "steps"):
            assert torch.equal(again[name], was[name]), name
        if "second" in part.units:
            expected = (was["outer"] * (1 / len(parts))).to(was["outer"].dtype)
            assert torch.equal(again["outer"], expected)
    if len(parts) > 1 and all("second" in part.units for part in parts):
        held = torch.zeros_like(state["inner"], dtype=torch.bool)
        for part in parts:
            ones = {n: torch.ones_like(t) for n, t in state.items()}
            share = Contribution(part, Tensors(cut_tensors(ones, widths, part)), 1.0)
            zeros = {n: torch.zeros_like(t) for n, t in state.items()}
            held |= merge_state(zeros, [share], widths, AVERAGE)["inner"].bool()
        assert not merged["inner"][~held].any()
        assert not held.all()


def test_shared_tensors_are_means_weighted_by_samples() -> None:
    widths = Widths(())
    old = {"w": torch.zeros(2), "n": torch.tensor(1)}
    one = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(5)}
    two = {"w": torch.tensor([4.0, 8.0]), "n": torch.tensor(3)}
    shares = [Contribution(WHOLE, Tensors(one), 100), Contribution(WHOLE, Tensors(two), 50)]
    merged = merge_state(old, shares, widths, AVERAGE)
    assert torch.allclose(merged["w"], torch.tensor([2.0, 4.0]))
    assert merged["n"] == 5  # counters take the largest


def test_nested_parts_are_averaged_where_they_overlap_and_old_where_nobody_was() -> None:
    widths = Widths((WidthGroup("g", 4, "hidden", (Slot("w", 0),)),))
    old = {"w": torch.tensor([9.0, 9.0, 9.0, 9.0])}
    small, large = Part({"g": (0,)}), Part({"g": (0, 1, 2)})
    shares = [
        Contribution(small, Tensors({"w": torch.tensor([1.0])}), 1),
        Contribution(large, Tensors({"w": torch.tensor([4.0, 5.0, 6.0])}), 2),
    ]
    merged = merge_state(old, shares, widths, AVERAGE)
    assert torch.allclose(merged["w"], torch.tensor([3.0, 5.0, 6.0, 9.0]))


def test_a_stand_in_without_weight_is_placed_but_does_not_count() -> None:
    widths = Widths((WidthGroup("g", 2, "hidden", (Slot("w", 0), Slot("head", 1))),), ("head",))
    old = {"w": torch.zeros(2), "head": torch.zeros(1, 2), "b": torch.zeros(1)}
    live = {"w": torch.tensor([1.0]), "head": torch.tensor([[2.0]]), "b": torch.tensor([3.0])}
    clone = {"w": torch.tensor([1.1]), "head": torch.tensor([[2.2]]), "b": torch.tensor([7.0])}
    shares = [
        Contribution(Part({"g": (0,)}), Tensors(live), 5.0),
        Contribution(Part({"g": (1,)}), Tensors(clone), 0.0),
    ]
    merged = merge_state(old, shares, widths, BLOCK)
    assert merged["w"].tolist() == pytest.approx([1.0, 1.1])
    assert merged["head"].tolist() == [[2.0, 0.0]]
    assert merged["b"].tolist() == [3.0]


def test_nothing_with_a_weight_is_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_state({}, [Contribution(WHOLE, Tensors({}), 0.0)], Widths(()), AVERAGE)


@given(states())
def test_merging_files_is_merging_states(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[dict[str, Tensor], Widths, list[Part]],
) -> None:
    state, widths, parts = drawn
    folder = tmp_path_factory.mktemp("merge")
    save_tensors(folder / "base", state, durable=False)
    shares, files = [], []
    for k, part in enumerate(parts):
        save_tensors(folder / f"p{k}", cut_tensors(state, widths, part), durable=False)
        files.append(TensorFile(folder / f"p{k}"))
        shares.append(Contribution(part, files[-1], 1.0))
    merge_files(folder / "base", shares, widths, AVERAGE, folder / "out", {}, durable=False)
    assert_same(load_tensors(folder / "out"), state)
    for file in files:
        file.close()


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (1, 900_000), (1000, 900), (3_000_000,)])
def test_a_tensor_of_any_shape_is_merged_by_rows_as_it_is_whole(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    states = [{"w": torch.full(shape, float(k)), "n": torch.tensor(k)} for k in range(3)]
    shares = []
    for k, state in enumerate(states):
        save_tensors(tmp_path / f"{k}", state, durable=False)
        shares.append(Contribution(WHOLE, TensorFile(tmp_path / f"{k}"), 1.0))
    merge_files(tmp_path / "0", shares, Widths(()), AVERAGE, tmp_path / "out", {})
    found = load_tensors(tmp_path / "out")
    assert_same(found, merge_state(states[0], shares, Widths(()), AVERAGE))
    assert torch.equal(found["w"], states[1]["w"])
    assert found["n"] == 2
    for share in shares:
        assert isinstance(share.tensors, TensorFile)
        share.tensors.close()


def test_parts_of_different_groups_are_not_called_disjoint() -> None:
    assert are_disjoint([Part({"g": (0, 1)}), Part({"g": (2,)})])
    assert not are_disjoint([Part({"g": (0, 1)}), Part({"g": (1,)})])
    assert not are_disjoint([Part({"g": (0,)}), WHOLE])
