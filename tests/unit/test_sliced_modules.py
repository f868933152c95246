"""Modules that take others' places where a model is cut or merged compute what these did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from partsum.shared.norms import group_norms
from partsum.shared.part import Part, cut_module
from partsum.shared.width import Axis, SlicedAttention, Widths, registry


@settings(max_examples=25, deadline=None)
@given(
    batch_first=st.booleans(),
    bias=st.booleans(),
    other=st.booleans(),
    mask=st.sampled_from(["none", "bool", "float", "a head"]),
    padded=st.booleans(),
    weights=st.sampled_from(["none", "mean", "each"]),
    batched=st.booleans(),
)
def test_sliced_attention_of_all_heads_is_torchs_own(
    batch_first: bool,
    bias: bool,
    other: bool,
    mask: str,
    padded: bool,
    weights: str,
    batched: bool,
) -> None:
    torch.manual_seed(0)
    keys = 5 if other else 12
    own = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first, kdim=keys, vdim=keys)
    query, key = torch.randn(2, 4, 12), torch.randn(2, 6, keys)
    allowed = torch.rand(4, 6) < 0.7
    allowed[:, 0] = True
    masks = {
        "none": None,
        "bool": ~allowed,
        "float": torch.randn(4, 6),
        "a head": torch.randn(6, 4, 6),
    }
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    arguments: dict[str, Any] = {
        "attn_mask": masks[mask],
        "key_padding_mask": padding if padded else None,
        "need_weights": weights != "none",
        "average_attn_weights": weights != "each",
    }
    if not batched:
        query, key = query[0], key[0]
        arguments["key_padding_mask"] = padding[1] if padded else None
        if mask == "a head":
            arguments["attn_mask"] = torch.randn(3, 4, 6)
    elif not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    # torch wants masks of one type.
    if mask in ("float", "a head") and padded:
        arguments["key_padding_mask"] = torch.zeros(padding.shape).masked_fill(padding, -1e9)
        if not batched:
            arguments["key_padding_mask"] = arguments["key_padding_mask"][1]
    expected = own(query, key, key, **arguments)
    found = SlicedAttention(own)(query, key, key, **arguments)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if found[1] is not None:
        torch.testing.assert_close(found[1], expected[1])


def test_heads_that_are_left_out_are_as_if_their_weights_were_zero() -> None:
    attention = nn.MultiheadAttention(12, 3, batch_first=True)
    model = nn.Sequential(attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    group = next(iter(registry._hidden(model)[0]))
    cut = cut_module(model, Widths((group,)), Part({group.name: (0, 2)})).get_submodule("0")
    assert isinstance(cut, SlicedAttention)
    inputs = torch.randn(2, 4, 12)
    with torch.no_grad():
        for third in (0, 12, 24):
            attention.in_proj_weight[third + 4 : third + 8] = 0
        attention.out_proj.weight[:, 4:8] = 0
    torch.testing.assert_close(cut(inputs, inputs, inputs)[0], attention(inputs, inputs, inputs)[0])


class FromOneNorm(nn.Module):
    """An RMS norm whose weight counts from one, as Gemma's does."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * inputs.pow(2).mean(-1, keepdim=True).rsqrt() * (1 + self.weight)


def test_any_norm_is_grouped_by_what_it_does() -> None:
    model = nn.Sequential(nn.Linear(3, 6), FromOneNorm(6), nn.Linear(6, 2))
    axis = Axis(model, "stream", 6, "stream").made_by("0").normed_by("1").read_by("2")
    parts = [Part({"stream": (0, 1)}), Part({"stream": (2, 3, 4, 5)})]
    inputs = torch.randn(3, 6)
    expected = []
    for first, last in ((0, 2), (2, 6)):
        norm = FromOneNorm(last - first)
        norm.weight.data = model[1].get_parameter("weight").data[first:last]
        expected.append(norm(inputs[:, first:last]))
    names = list(model.state_dict())
    group_norms(model, Widths((axis.done(),)), parts)
    torch.testing.assert_close(model[1](inputs), torch.cat(expected, -1))
    assert list(model.state_dict()) == names
    model[1](inputs).sum().backward()
    assert model[1].get_parameter("weight").grad is not None


def test_causal_without_a_mask_is_refused_as_torch_refuses_it() -> None:
    own = nn.MultiheadAttention(8, 2, batch_first=True)
    query = torch.randn(1, 3, 8)
    for module in (own, SlicedAttention(own)):
        with pytest.raises(RuntimeError, match="attn_mask"):
            module(query, query, query, is_causal=True)
