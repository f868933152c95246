"""The certificate: a part computes what the base computes with the other parts' weights at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from partsum.shared.part import (
    Part,
    cut_module,
    cut_tensors,
    fresh_module,
    index_map,
    region,
)
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tasks.transformer import CharGpt, Vit
from partsum.shared.width import Widths, find_widths

Mode = Literal["block", "residual"]

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp ending in a hidden axis": lambda: Mlp(12, [24, 24, 24], 5),
    "mlp ending in the stream": lambda: Mlp(12, [24, 20], 5),
    "vit": lambda: Vit(size=8, patch=4, width=24, heads=6, layers=2, hidden=36, classes=5),
    "gpt": lambda: CharGpt(characters=11, context=9, width=24, heads=6, layers=2),
}


def inputs_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    if isinstance(model, CharGpt):
        return torch.randint(11, (3, 9), generator=generator)
    shape = (3, 1, 8, 8) if isinstance(model, Vit) else (3, 12)
    return torch.randn(shape, generator=generator)


def base_of(kind: str) -> nn.Module:
    """A model whose every parameter is random, also those that begin as 0 or 1."""
    model = fresh_module(MODELS[kind](), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def deal(units: int, how: str, count: int) -> list[tuple[int, ...]]:
    """All units, each to one of the parts."""
    order = list(range(units))
    bounds = [units * k // count for k in range(count + 1)]
    if how == "uneven":  # every part one unit, the last one the rest
        bounds = [*range(count), units]
    if how == "scattered":
        generator = torch.Generator().manual_seed(units)
        order = torch.randperm(units, generator=generator).tolist()
    return [tuple(sorted(order[bounds[k] : bounds[k + 1]])) for k in range(count)]


def parts_of(widths: Widths, mode: Mode, how: str, count: int) -> list[Part]:
    groups = [g for g in widths.groups if mode == "block" or g.depth == "hidden"]
    dealt = {group.name: deal(group.units, how, count) for group in groups}
    return [Part({name: shares[k] for name, shares in dealt.items()}) for k in range(count)]


def masks_of(model: nn.Module, widths: Widths, part: Part) -> dict[str, Tensor]:
    """For each tensor, 1 where the part keeps it."""
    kept = index_map(widths, part)
    masks = {}
    for name, tensor in model.state_dict().items():
        masks[name] = torch.zeros(tensor.shape)
        masks[name][region(tensor, kept.get(name, {}))] = 1
    return masks


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(masks[name])
    return model


class GroupedNorm(nn.Module):
    """A LayerNorm over each part's slice of the last dimension: the reference of this test."""

    def __init__(self, norm: nn.LayerNorm, slices: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.slices = norm.weight, norm.bias, norm.eps, slices

    def forward(self, stream: Tensor) -> Tensor:
        normed = torch.empty_like(stream)
        for units in map(list, self.slices):
            normed[..., units] = nn.functional.layer_norm(
                stream[..., units], (len(units),), self.weight[units], self.bias[units], self.eps
            )
        return normed


def group_norms(model: nn.Module, parts: list[Part]) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                slices = [part.units["stream"] for part in parts]
                setattr(module, name, GroupedNorm(child, slices))


ways_to_cut = pytest.mark.parametrize(
    ("how", "count"),
    [("even", 2), ("even", 3), ("even", 4), ("uneven", 3), ("scattered", 3)],
)
kinds = pytest.mark.parametrize("kind", MODELS)
modes = pytest.mark.parametrize("mode", ["block", "residual"])


@kinds
@modes
@ways_to_cut
def test_a_cut_module_holds_exactly_the_tensors_that_cut_tensors_gives(
    kind: str, mode: Mode, how: str, count: int
) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    for part in parts_of(widths, mode, how, count):
        tensors = cut_tensors(base.state_dict(), widths, part)
        state = cut_module(base, widths, part).state_dict()
        assert list(state) == list(tensors) == list(base.state_dict())
        assert all(torch.equal(state[name], tensors[name]) for name in state)


@kinds
@modes
@ways_to_cut
def test_parts_cover_every_element_once_or_all_share_it(
    kind: str, mode: Mode, how: str, count: int
) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    parts = parts_of(widths, mode, how, count)
    all_masks = [masks_of(base, widths, part) for part in parts]
    kept = index_map(widths, parts[0])
    for name in base.state_dict():
        times = torch.stack([masks[name] for masks in all_masks]).sum(dim=0)
        cut_dims = len(kept.get(name, {}))
        if cut_dims == 0:
            assert bool((times == count).all()), name
        elif cut_dims == 1:
            assert bool((times == 1).all()), name
        else:  # a matrix cut on both sides: diagonal blocks once, cross blocks never
            assert set(times.flatten().tolist()) == {0.0, 1.0}, name
            diagonal = sum(int(masks[name].sum()) for masks in all_masks)
            assert int(times.sum()) == diagonal, name


@kinds
@ways_to_cut
def test_in_mode_residual_a_part_is_the_base_with_the_other_units_at_zero(
    kind: str, how: str, count: int
) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    inputs = inputs_of(base)
    for part in parts_of(widths, "residual", how, count):
        expected = masked(base, masks_of(base, widths, part))(inputs)
        found = cut_module(base, widths, part)(inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@kinds
@ways_to_cut
def test_in_mode_block_the_diagonal_blocks_compute_the_mean_of_the_parts(
    kind: str, how: str, count: int
) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    parts = parts_of(widths, "block", how, count)
    inputs = inputs_of(base)
    mean = torch.stack([cut_module(base, widths, part)(inputs) for part in parts]).mean(dim=0)

    all_masks = [masks_of(base, widths, part) for part in parts]
    union = {n: torch.stack([m[n] for m in all_masks]).amax(dim=0) for n in all_masks[0]}
    merged = masked(base, union)
    with torch.no_grad():
        for name in widths.readouts:
            merged.get_parameter(name).div_(count)
    group_norms(merged, parts)
    torch.testing.assert_close(merged(inputs), mean, rtol=1e-4, atol=1e-5)


@kinds
def test_in_mode_residual_a_scale_of_one_over_the_parts_makes_a_branch_the_mean_of_its_parts(
    kind: str,
) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    parts = parts_of(widths, "residual", "even", 3)
    path = widths.scales[0].removesuffix(".scale")
    layer = base.get_submodule(path)
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.scale, Tensor)
    read = torch.randn(4, layer.weight.shape[1], generator=torch.Generator().manual_seed(1))
    outputs = []
    for part in parts:
        columns = index_map(widths, part)[f"{path}.weight"][1]
        outputs.append(cut_module(base, widths, part).get_submodule(path)(read[:, columns]))
    layer.scale.fill_(1 / 3)
    torch.testing.assert_close(layer(read), torch.stack(outputs).mean(dim=0))


@kinds
@modes
@ways_to_cut
def test_a_part_trains_every_parameter_that_it_holds(
    kind: str, mode: Mode, how: str, count: int
) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    for part in parts_of(widths, mode, how, count):
        narrow = cut_module(base, widths, part)
        narrow(inputs_of(base)).square().mean().backward()
        for name, parameter in narrow.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


@kinds
@modes
def test_a_part_built_without_its_base_has_its_shapes_and_the_seeds_bytes(
    kind: str, mode: Mode
) -> None:
    base = base_of(kind)
    part = parts_of(find_widths(base), mode, "uneven", 3)[1]
    wanted = cut_tensors(base.state_dict(), find_widths(base), part)

    def build(seed: int) -> dict[str, Tensor]:
        with torch.device("meta"):
            hollow = MODELS[kind]()
        narrow = cut_module(hollow, find_widths(hollow), part).to_empty(device="cpu")
        with torch.no_grad():  # memory comes as it is; nothing of it may survive
            for tensor in narrow.state_dict().values():
                tensor.fill_(float("nan"))
        return fresh_module(narrow, seed).state_dict()

    first, again, other = build(1), build(1), build(2)
    assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in wanted.items()}
    assert all(bool(tensor.isfinite().all()) for tensor in first.values())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@kinds
def test_the_part_of_a_part_can_be_cut_again(kind: str) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    narrow = cut_module(base, widths, parts_of(widths, "block", "even", 2)[1])
    groups = find_widths(narrow).groups
    assert [g.units for g in groups] == [g.units // 2 for g in widths.groups]


def test_a_model_says_which_heads_and_stream_it_has() -> None:
    widths = find_widths(MODELS["gpt"]())
    names = [(group.name, group.units, group.depth) for group in widths.groups]
    assert names == [
        ("stream", 24, "stream"),
        ("blocks.0.heads", 6, "hidden"),
        ("blocks.0.hidden", 96, "hidden"),
        ("blocks.1.heads", 6, "hidden"),
        ("blocks.1.hidden", 96, "hidden"),
    ]
    assert widths.readouts == ("head.weight",)
    assert len(widths.scales) == 4
