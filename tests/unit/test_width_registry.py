"""Rules that users add, units that own some of a tensor, and modules that take others' places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from partsum.coordinator.merge import AVERAGE, BLOCK, Contribution, Tensors, merge_state
from partsum.coordinator.norms import group_norms
from partsum.shared.errors import WidthError
from partsum.shared.part import Part, cut_module, cut_tensors, index_map
from partsum.shared.width import (
    Axis,
    LeftOut,
    SlicedAttention,
    Slot,
    WidthGroup,
    Widths,
    check_widths,
    find_widths,
    register,
    register_whole,
    registry,
    widths_by_rules,
)


@pytest.fixture(autouse=True)
def rules_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_rules", list(registry._rules))
    monkeypatch.setattr(registry, "_whole_rules", list(registry._whole_rules))


# -- rules that are added ------------------------------------------------------------------------


class Mixer(nn.Module):
    """A branch whose layers have names that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.spread, self.gather = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.gather(self.spread(stream).relu())  # type: ignore[no-any-return]


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixer, self.fc1, self.fc2 = (
            nn.Linear(4, 6),
            Mixer(),
            nn.Linear(6, 8),
            nn.Linear(8, 6),
        )
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.mixer(self.stem(inputs))
        return self.head(stream + self.fc2(self.fc1(stream).relu()))  # type: ignore[no-any-return]


def mixer_rule(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup]:
    assert isinstance(module, Mixer)
    axis = Axis(model, f"{path}.spread", module.spread.out_features, "hidden")
    yield axis.made_by(f"{path}.spread").read_by(f"{path}.gather").done()


def test_a_rule_for_a_kind_of_module_takes_a_few_lines() -> None:
    refused = find_widths(Mixed())
    assert "no rule knows the output: mixer.spread" in refused.block_refusal
    register(Mixer)(mixer_rule)
    widths = find_widths(Mixed())
    assert [(g.name, g.units) for g in widths.groups] == [
        ("stream", 6),
        ("mixer.spread", 12),
        ("hidden", 8),
    ]
    assert widths.readouts == ("head.weight",)
    assert widths.block_refusal == ""


def test_the_newest_rule_is_asked_first_and_what_it_claims_is_claimed() -> None:
    @register(lambda module: hasattr(module, "fc1"))
    def pairs(model: nn.Module, path: str, module: nn.Module) -> Iterator[WidthGroup]:
        axis = Axis(model, "pairs", 4, "hidden").made_by("fc1", block=2)
        yield axis.read_by("fc2", block=2).done()

    names = {group.name: group.units for group in find_widths(Mixed()).groups}
    assert names["pairs"] == 4
    assert "hidden" not in names


def test_a_rule_may_say_that_a_tensor_stays_whole() -> None:
    @register(lambda module: hasattr(module, "fc1"))
    def never(model: nn.Module, path: str, module: nn.Module) -> Iterable[LeftOut]:
        return [LeftOut("fc1.weight", "it is dear to me")]

    register(Mixer)(mixer_rule)
    widths = find_widths(Mixed())
    assert [group.name for group in widths.groups] == ["mixer.spread"]
    assert widths.block_refusal == "fc1.weight stays whole: it is dear to me"


def test_a_model_may_start_from_what_the_rules_find() -> None:
    class Own(Mixed):
        def width_groups(self) -> Widths:
            found = widths_by_rules(self)
            return Widths((*found.groups, *mixer_rule(self, "mixer", self.mixer)))

    assert [group.name for group in find_widths(Own()).groups] == ["hidden", "mixer.spread"]


def test_a_rule_for_whole_models_is_asked_before_those_for_modules() -> None:
    expected = Widths((next(iter(mixer_rule(Mixed(), "mixer", Mixer()))),))

    @register_whole
    def mixed(model: nn.Module) -> Widths | None:
        return expected if isinstance(model, Mixed) else None

    assert find_widths(Mixed()) == expected
    assert find_widths(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))).groups[0].name == "0"


# -- units that own some of a dimension ----------------------------------------------------------


def latent() -> nn.Sequential:
    """A layer of 2 shared rows, then 3 units of 2 rows; and of 1 row each after those."""
    return nn.Sequential(nn.Linear(4, 11), nn.Linear(11, 5))


def latent_widths(model: nn.Module) -> Widths:
    axis = Axis(model, "units", 3, "hidden").made_by("0", 2, (2,)).made_by("0", 1, (8,))
    return Widths((axis.read_by("1", 2, (2,)).read_by("1", 1, (8,)).done(),))


def test_units_may_have_several_slots_in_one_dimension_and_leave_some_of_it_whole() -> None:
    model = latent()
    widths = latent_widths(model)
    check_widths(model, widths)
    assert Slot("0.weight", 0, 2, (2,), size=11) in widths.groups[0].slots
    kept = index_map(widths, Part({"units": (0, 2)}))
    assert kept["0.weight"][0].tolist() == [0, 1, 2, 3, 6, 7, 8, 10]
    assert kept["1.weight"][1].tolist() == [0, 1, 2, 3, 6, 7, 8, 10]


def test_what_of_a_cut_tensor_all_parts_share_is_their_weighted_mean() -> None:
    model = latent()
    widths, state = latent_widths(model), model.state_dict()
    parts = [Part({"units": (k,)}) for k in range(3)]
    cuts = [cut_tensors(state, widths, part) for part in parts]
    same = [Contribution(p, Tensors(c), 1.0) for p, c in zip(parts, cuts, strict=True)]
    merged = merge_state(state, same, widths, AVERAGE)
    assert all(torch.equal(merged[name], tensor) for name, tensor in state.items())
    moved = [
        Contribution(p, Tensors({n: t + k for n, t in c.items()}), float(k))
        for k, (p, c) in enumerate(zip(parts, cuts, strict=True), start=1)
    ]
    for rule in (AVERAGE, BLOCK):
        bias = merge_state(state, moved, widths, rule)["0.bias"] - state["0.bias"]
        mean = (1 + 4 + 9) / 6
        expected = torch.tensor([mean, mean, 1, 1, 2, 2, 3, 3, 1, 2, 3])
        torch.testing.assert_close(bias, expected)


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        (
            [Slot("0.weight", 0, 2, (2,), 11), Slot("0.weight", 0, 1, (7,), 11)],
            "own each index once",
        ),
        ([Slot("0.weight", 0, 2, (2,), 12)], "whose shape is"),
        ([Slot("0.weight", 0, 2, (2,))], "the rest is kept whole"),
        ([Slot("0.weight", 0, 2, (6,), 11)], "at offsets"),
    ],
    ids=["twice", "another size", "a rest in silence", "out of range"],
)
def test_slots_that_do_not_fit_are_refused_in_words(slots: list[Slot], said: str) -> None:
    group = WidthGroup("units", 3, "hidden", tuple(slots))
    with pytest.raises(WidthError, match=said):
        check_widths(latent(), Widths((group,)))


# -- modules in place of others ------------------------------------------------------------------


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
