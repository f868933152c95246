"""Norms over slices are what the parts have, and averaged statistics are mended."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from partsum.coordinator.norms import has_batch_norm, recalibrate
from partsum.shared.errors import WidthError
from partsum.shared.norms import GroupedNorm, group_norms
from partsum.shared.part import Part
from partsum.shared.width import find_widths


def norm_of(kind: str, size: int) -> nn.LayerNorm | nn.RMSNorm:
    norm: nn.LayerNorm | nn.RMSNorm
    norm = nn.RMSNorm(size) if kind == "rms" else nn.LayerNorm(size, bias=kind == "layer")
    generator = torch.Generator().manual_seed(size)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(size, generator=generator))
    return norm


def sliced(norm: nn.LayerNorm | nn.RMSNorm, inputs: Tensor, sizes: list[int]) -> Tensor:
    """The same by torch's own norms, slice by slice."""
    found, start = [], 0
    for size in sizes:
        here = slice(start, start + size)
        if isinstance(norm, nn.RMSNorm):
            piece = nn.functional.rms_norm(inputs[..., here], (size,), norm.weight[here], norm.eps)
        else:
            bias = norm.bias[here] if norm.bias is not None else None
            piece = nn.functional.layer_norm(
                inputs[..., here], (size,), norm.weight[here], bias, norm.eps
            )
        found.append(piece)
        start += size
    return torch.cat(found, -1)


kinds = st.sampled_from(["layer", "layer without bias", "rms"])


@given(kinds, st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_a_grouped_norm_is_the_plain_norm_of_each_uneven_slice(kind: str, sizes: list[int]) -> None:
    norm = norm_of(kind, sum(sizes))
    inputs = torch.randn(3, 2, sum(sizes), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(GroupedNorm(norm, sizes)(inputs), sliced(norm, inputs, sizes))


@given(kinds, st.integers(1, 9))
def test_a_grouped_norm_of_one_group_is_the_plain_norm(kind: str, size: int) -> None:
    norm = norm_of(kind, size)
    inputs = torch.randn(4, size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(GroupedNorm(norm, [size])(inputs), norm(inputs))


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 4), nn.RMSNorm(4), nn.Linear(4, 2)
    )


def test_grouping_norms_changes_no_name_and_no_tensor_of_the_state() -> None:
    model = chain()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = [Part({"0": (0, 1, 2), "3": (0,)}), Part({"0": (3, 4), "3": (1, 2, 3)})]
    group_norms(model, find_widths(model), parts)
    assert cast(GroupedNorm, model[1]).sizes == [3, 2]
    assert cast(GroupedNorm, model[4]).sizes == [1, 3]
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_norms_over_an_axis_that_is_not_cut_stay_plain() -> None:
    model = chain()
    group_norms(model, find_widths(model), [Part({"0": (0, 1)}), Part({"0": (2, 3, 4)})])
    assert isinstance(model[1], GroupedNorm)
    assert isinstance(model[4], nn.RMSNorm)


@pytest.mark.parametrize("first", [(0, 2), (3, 4)], ids=["scattered", "out of order"])
def test_norms_of_parts_that_are_no_consecutive_slices_are_refused(first: tuple[int, ...]) -> None:
    rest = tuple(unit for unit in range(5) if unit not in first)
    model = chain()
    with pytest.raises(WidthError, match=r"norm 1: .*contiguous"):
        group_norms(model, find_widths(model), [Part({"0": first}), Part({"0": rest})])


def test_averaged_batch_norm_statistics_are_wrong_and_recalibration_mends_them() -> None:
    """Failure mode 6: the mean of parts' variances is not the variance of what they become."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 4, generator=generator) * 3 + 1
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    norm = cast(nn.BatchNorm1d, model[1])
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        reached = model[0](inputs)
    stale = [(reached[:500] * scale).var(0) for scale in (0.2, 0.4)]
    norm.running_mean.zero_()
    norm.running_var.copy_((stale[0] + stale[1]) / 2)  # what averaging two parts leaves behind
    true_mean, true_var = reached.mean(0), reached.var(0)
    assert (norm.running_var / true_var - 1).abs().max() > 0.5

    momentum = norm.momentum
    recalibrate(model, list(torch.split(inputs, 100)))
    torch.testing.assert_close(norm.running_mean, true_mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, true_var, rtol=0.05, atol=0)
    assert norm.momentum == momentum
    assert model.training


def test_recalibration_trains_nothing_but_the_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9), nn.BatchNorm1d(3)).eval()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    recalibrate(model, [torch.ones(8, 2), torch.zeros(8, 2)])
    assert not model.training
    assert not model[2].training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    mean = model[0](torch.tensor([[1.0, 1.0], [0.0, 0.0]])).mean(0)  # no dropout in between
    torch.testing.assert_close(model[2].running_mean, mean)


def test_a_model_knows_whether_it_has_batch_norm() -> None:
    assert has_batch_norm(nn.Sequential(nn.Sequential(nn.BatchNorm2d(3))))
    assert not has_batch_norm(chain())
