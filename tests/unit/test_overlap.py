"""Units that several parts hold: the base is the mean of its parts, and a cut can be taken back."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from partsum.coordinator.merge import AVERAGE, Contribution, Tensors, merge_state
from partsum.coordinator.overlap import Overlap
from partsum.coordinator.planner.complement import residual_parts
from partsum.coordinator.planner.relevance import Ranking, relevance_parts
from partsum.shared.errors import WidthError
from partsum.shared.part import Part, cut_module, cut_tensors
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tasks.transformer import Vit
from partsum.shared.width import ScaledLinear, Slot, WidthGroup, Widths, find_widths


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), ScaledLinear(12 * 9, 3)
    )


# Each has one branch of hidden units between the inputs and the outputs: it alone is linear in its
# parts' sums.
ONE_BRANCH: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: Mlp(64, [12], 3),
    "convolution": convolutional,
}
MANY = ONE_BRANCH | {
    "deep mlp": lambda: Mlp(64, [12, 8, 12], 3),
    "vit": lambda: Vit(8, 4, 24, 12, 2, 36, 3),
}


def base_of(name: str, count: int) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = MANY[name]().eval()
    state = dict(model.state_dict())
    for scale in find_widths(model).scales:
        state[scale] = torch.tensor(1 / count)
    model.load_state_dict(state)
    return model, {key: value.clone() for key, value in state.items()}


def planned(model: nn.Module, count: int, shared: float, round: int = 0) -> list[Part]:
    widths = find_widths(model)
    fractions = [1 / count] * count
    return relevance_parts(widths, fractions, Ranking({}, shared), 0, round)


def cut_all(model: nn.Module, parts: list[Part]) -> list[dict[str, Tensor]]:
    widths, overlap = find_widths(model), Overlap(model, find_widths(model), parts)
    state = dict(model.state_dict())
    return [overlap.to_part(cut_tensors(state, widths, part), part) for part in parts]


def merged(
    model: nn.Module, parts: list[Part], tensors: list[dict[str, Tensor]], held: list[int]
) -> dict[str, Tensor]:
    """What is made of the updates of those parts that are in."""
    widths, overlap = find_widths(model), Overlap(model, find_widths(model), parts)
    shares = [overlap.to_base(Contribution(parts[k], Tensors(tensors[k]), 1.0)) for k in held]
    return merge_state(dict(model.state_dict()), shares, widths, AVERAGE)


def mean_of(
    model: nn.Module, parts: list[Part], tensors: list[dict[str, Tensor]], inputs: Tensor
) -> Tensor:
    """The mean of what the parts put out."""
    outputs = []
    for part, own in zip(parts, tensors, strict=True):
        narrow = cut_module(model, find_widths(model), part).eval()
        narrow.load_state_dict(own)
        with torch.no_grad():
            outputs.append(narrow(inputs))
    return torch.stack(outputs).mean(0)


@pytest.mark.parametrize("name", ONE_BRANCH)
@pytest.mark.parametrize("shared", [0.0, 0.25, 0.5])
def test_the_base_is_the_mean_of_its_parts_right_after_the_cut(name: str, shared: float) -> None:
    model, _ = base_of(name, 3)
    parts, inputs = planned(model, 3, shared), torch.randn(5, 1, 8, 8)
    cuts = cut_all(model, parts)
    mean = mean_of(model, parts, cuts, inputs)
    assert torch.allclose(model(inputs), mean, atol=1e-5)


@pytest.mark.parametrize("name", ONE_BRANCH)
def test_the_base_is_the_mean_of_its_parts_once_they_agree_on_what_they_share(name: str) -> None:
    """Each part trains what it alone holds; what it shares stays as the others have it."""
    model, _ = base_of(name, 4)
    parts, inputs = planned(model, 4, 0.25), torch.randn(5, 1, 8, 8)
    moved, _ = base_of(name, 4)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = cut_all(moved, parts)
    model.load_state_dict(merged(model, parts, trained, [0, 1, 2, 3]))
    mean = mean_of(model, parts, trained, inputs)
    assert torch.allclose(model(inputs), mean, atol=1e-5)


@pytest.mark.parametrize("name", MANY)
@settings(max_examples=15, deadline=None)
@given(count=st.sampled_from([2, 4]), shared=st.floats(0, 0.5), held=st.integers(1, 15))
def test_a_cut_that_nobody_trained_merges_to_the_base_to_the_bit(
    name: str, count: int, shared: float, held: int
) -> None:
    """Whoever of the parts is in: those that are missing leave the base as it is."""
    model, before = base_of(name, count)
    parts = planned(model, count, shared)
    here = [k for k in range(count) if held >> k & 1] or [0]
    found = merged(model, parts, cut_all(model, parts), here)
    assert all(torch.equal(found[key], before[key]) for key in before)


@given(st.integers(3, 7), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_other_counts_and_any_overlap_merge_to_the_base_to_rounding(count: int, seed: int) -> None:
    model, before = base_of("mlp", count)
    chance = random.Random(seed)
    group = find_widths(model).groups[0]
    parts = [
        Part({group.name: tuple(sorted(chance.sample(range(group.units), chance.randint(1, 12))))})
        for _ in range(count)
    ]
    found = merged(model, parts, cut_all(model, parts), list(range(count)))
    assert all(torch.allclose(found[key], before[key], rtol=1e-6) for key in before)


def test_a_shared_unit_counts_as_often_as_it_is_held() -> None:
    model, before = base_of("mlp", 4)
    parts = planned(model, 4, 0.25)  # no scores: the first 3 of 12 units are shared
    cuts = cut_all(model, parts)
    columns = before["head.weight"]
    for part, cut in zip(parts, cuts, strict=True):
        times = torch.tensor([4.0 if unit < 3 else 1.0 for unit in part.units["linear1"]])
        assert torch.equal(cut["head.weight"] * times, columns[:, list(part.units["linear1"])])
        assert float(cut["head.scale"]) == 1.0
        assert torch.equal(
            cut["linear1.weight"], before["linear1.weight"][list(part.units["linear1"])]
        )


def test_parts_that_share_nothing_are_left_alone() -> None:
    model, before = base_of("vit", 4)
    widths = find_widths(model)
    parts = residual_parts(widths, [0.25] * 4, 0, 0)
    overlap = Overlap(model, widths, parts)
    tensors = cut_tensors(before, widths, parts[0])
    share = Contribution(parts[0], Tensors(tensors), 1.0)
    assert overlap.to_base(share) is share
    assert all(overlap.to_part(tensors, parts[0])[key] is tensors[key] for key in tensors)


def test_shared_units_that_a_layer_of_experts_adds_up_are_refused() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(2, 8, 3))
            self.down_proj = nn.Parameter(torch.zeros(2, 3, 4))

    slots = (Slot("gate_up_proj", 1, offsets=(0, 4)), Slot("down_proj", 2))
    widths = Widths((WidthGroup("hidden", 4, "hidden", slots),))
    Overlap(Experts(), widths, [Part({"hidden": (0, 1)}), Part({"hidden": (2, 3)})])
    with pytest.raises(WidthError, match=r"set relevance.shared = 0"):
        Overlap(Experts(), widths, [Part({"hidden": (0, 1)}), Part({"hidden": (0, 3)})])
