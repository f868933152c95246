"""Convolutional nets are cut by what they compute: certificate, coverage, training, merge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from tests.convnets import (
    BasicBlock,
    Bottleneck,
    GroupNormNet,
    HuggingFace,
    LinearSqueezeExcite,
    MobileNet,
    ResNet,
    UNet,
)
from torch import Tensor, nn

from partsum.coordinator.merge import AVERAGE, BLOCK, Contribution, Tensors, merge_state
from partsum.coordinator.norms import recalibrate
from partsum.coordinator.planner.complement import block_parts, residual_parts
from partsum.shared.errors import WidthError
from partsum.shared.part import Part, cut_module, cut_tensors, fresh_module, index_map, region
from partsum.shared.tasks.vgg import VGG19, Vgg
from partsum.shared.width import Widths, find_widths, with_scales

Depth = Literal["hidden", "stream"]

PARTS = 4
_SMALL_VGG19 = [width // 8 for width in VGG19]

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vgg-19 with batch norm": lambda: Vgg(32, 3, _SMALL_VGG19, (24, 24), 5),
    "vgg without norms": lambda: with_scales(Vgg(28, 1, (8, 8, 0, 16, 0), (24,), 5, norm=False)),
    "resnet of basic blocks": lambda: ResNet(BasicBlock),
    "resnet of bottlenecks": lambda: ResNet(Bottleneck),
    "resnet of grouped bottlenecks": lambda: ResNet(Bottleneck, groups=4),
    "mobilenet": MobileNet,
    "mobilenet with linear gates": lambda: MobileNet(LinearSqueezeExcite),
    "group norms": GroupNormNet,
    "hugging face resnet": lambda: HuggingFace(
        "ResNet", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck"
    ),
    "hugging face regnet": lambda: HuggingFace(
        "RegNet", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], groups_width=4
    ),
}

kinds = pytest.mark.parametrize("kind", MODELS)
depths = pytest.mark.parametrize("depth", ["hidden", "stream"])


def images_of(kind: str, count: int = 6) -> Tensor:
    size, colours = (28, 1) if kind == "vgg without norms" else (32, 3)
    return torch.randn(count, colours, size, size, generator=torch.Generator().manual_seed(7))


def base_of(kind: str) -> nn.Module:
    """A model with every parameter and statistic random, also those that begin as 0 or 1."""
    model = fresh_module(MODELS[kind](), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and not name.endswith("scale"):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


def parts_of(widths: Widths, depth: Depth) -> list[Part]:
    """Four complements: of the hidden groups alone, or of all."""
    groups = [group for group in widths.groups if depth == "stream" or group.depth == "hidden"]
    return block_parts(Widths(tuple(groups)), [1 / PARTS] * PARTS)


def masked(base: nn.Module, widths: Widths, part: Part) -> nn.Module:
    """The base with the other units' weights and statistics at zero."""
    kept = index_map(widths, part)
    model = copy.deepcopy(base)
    for name, tensor in model.state_dict().items():
        where = region(tensor, kept.get(name, {}))
        values = tensor[where].clone()
        tensor.zero_()
        tensor[where] = values
    return model


def trained(base: nn.Module, widths: Widths, part: Part, seed: int, images: Tensor) -> nn.Module:
    """A part of its own weights, one step on."""
    model = fresh_module(cut_module(base, widths, part), seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(images).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    return model.eval()


def contribution(part: Part, model: nn.Module, weight: float) -> Contribution:
    return Contribution(part, Tensors(dict(model.state_dict())), weight)


@kinds
@depths
def test_a_part_computes_what_the_base_does_without_the_other_units(
    kind: str, depth: Depth
) -> None:
    base, images = base_of(kind), images_of(kind)
    widths = find_widths(base)
    for part in parts_of(widths, depth):
        found = cut_module(base, widths, part)(images)
        expected = masked(base, widths, part)(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert float((found - base(images)).detach().abs().max()) > 1e-3  # not the base itself


@kinds
@depths
def test_four_complements_hold_every_element_once_or_all_share_it(kind: str, depth: Depth) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    maps = [index_map(widths, part) for part in parts_of(widths, depth)]
    crossed = set()
    for name, tensor in base.state_dict().items():
        times = torch.zeros(tensor.shape)
        for kept in maps:
            times[region(tensor, kept.get(name, {}))] += 1
        dims = maps[0].get(name, {})
        assert set(times.flatten().tolist()) <= ({0, 1} if len(dims) > 1 else {1, PARTS}), name
        if bool((times == 0).any()):
            crossed.add(name)
    assert bool(crossed) == (depth == "stream")  # of a weight cut along both, the diagonal alone


@kinds
@depths
def test_what_was_cut_is_put_back_to_the_bit(kind: str, depth: Depth) -> None:
    base = base_of(kind)
    widths = find_widths(base)
    state = dict(base.state_dict())
    shares = [
        Contribution(part, Tensors(cut_tensors(state, widths, part)), 1.0 + k)
        for k, part in enumerate(parts_of(widths, depth))
    ]
    merged = merge_state(state, shares, widths, AVERAGE)
    assert all(torch.equal(merged[name], state[name]) for name in state)


@kinds
def test_trained_parts_merge_in_mode_block_to_their_weighted_mean(kind: str) -> None:
    base, images = base_of(kind), images_of(kind)
    widths = find_widths(base)
    assert not widths.block_refusal
    weights = [0.1, 0.2, 0.3, 0.4]
    parts = parts_of(widths, "stream")
    models = [trained(base, widths, part, seed, images) for seed, part in enumerate(parts)]
    shares = [contribution(p, m, w) for p, m, w in zip(parts, models, weights, strict=True)]
    merged = copy.deepcopy(base)
    merged.load_state_dict(merge_state(dict(base.state_dict()), shares, widths, BLOCK))
    mean = sum(w * model(images) for w, model in zip(weights, models, strict=True))
    torch.testing.assert_close(merged(images), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["vgg without norms", "resnet of basic blocks"])
def test_parts_of_hidden_axes_train_and_merge_in_mode_residual(kind: str) -> None:
    base, images = base_of(kind), images_of(kind)
    widths = find_widths(base)
    parts = residual_parts(widths, [1 / PARTS] * PARTS, seed=1, round=0)
    models = [trained(base, widths, part, 0, images) for part in parts]
    shares = [contribution(p, m, 1.0) for p, m in zip(parts, models, strict=True)]
    merged = merge_state(dict(base.state_dict()), shares, widths, AVERAGE)
    kept = index_map(widths, parts[2])
    for name, tensor in models[2].state_dict().items():
        if len(kept.get(name, {})) == 1:
            assert torch.equal(merged[name][region(merged[name], kept[name])], tensor), name


def test_a_constant_factor_is_lost_in_a_batch_norm_whose_statistics_are_computed_anew() -> None:
    base, images = base_of("resnet of basic blocks"), images_of("resnet of basic blocks", 32)
    widths = find_widths(base)
    assert not widths.scales
    assert set(widths.normed) == {f"layer{i}.{j}.conv2" for i in (1, 2) for j in (0, 1)}
    scaled = copy.deepcopy(base)
    with torch.no_grad():
        for path in widths.normed:
            scaled.get_parameter(f"{path}.weight").div_(PARTS)
    for model in (base, scaled):
        recalibrate(model, [images])
    torch.testing.assert_close(scaled(images), base(images), rtol=1e-2, atol=1e-2)


def groups_of(kind: str) -> dict[str, tuple[int, str]]:
    return {group.name: (group.units, group.depth) for group in find_widths(MODELS[kind]()).groups}


def test_added_channels_are_one_stream_and_a_block_opens_and_closes_a_hidden_axis() -> None:
    assert groups_of("resnet of basic blocks") == {
        "conv1": (8, "stream"),
        "layer1.0.conv1": (8, "hidden"),
        "layer1.1.conv1": (8, "hidden"),
        "layer2.0.conv1": (16, "hidden"),
        "layer2.0.downsample.0": (16, "stream"),
        "layer2.1.conv1": (16, "hidden"),
    }
    widths = find_widths(MODELS["resnet of basic blocks"]())
    held = {slot.tensor for slot in widths.group("layer2.0.downsample.0").slots}
    assert {"layer2.0.conv2.weight", "layer2.1.conv2.weight", "fc.weight"} <= held
    assert widths.readouts == ("fc.weight",)


def test_of_two_axes_that_share_a_weight_the_one_that_closes_the_branch_is_hidden() -> None:
    groups = groups_of("resnet of bottlenecks")
    assert groups["layer1.1.conv1"] == (8, "stream")
    assert groups["layer1.1.conv2"] == (8, "hidden")


def test_a_group_of_a_grouped_convolution_is_a_unit() -> None:
    widths = find_widths(MODELS["resnet of grouped bottlenecks"]())
    group = widths.group("layer2.1.conv1")
    assert (group.units, group.depth) == (4, "hidden")
    assert {(c.module, c.attribute, c.per_unit) for c in group.counts} == {
        ("layer2.1.conv2", "groups", 1),
        ("layer2.1.conv2", "in_channels", 4),
        ("layer2.1.conv2", "out_channels", 4),
    }


def test_a_depthwise_channel_is_a_unit_and_what_is_squeezed_a_group_of_its_own() -> None:
    groups = groups_of("mobilenet")
    assert groups["features.2.block.0.0"] == (24, "hidden")
    assert groups["features.2.block.2.fc1"] == (8, "stream")
    assert groups["features.1.block.3.0"] == (12, "stream")


def test_a_group_norm_bounds_the_units_of_its_axis() -> None:
    assert groups_of("group norms") == {"down": (4, "stream"), "up": (12, "hidden")}


def test_a_flattened_map_is_a_block_for_each_channel() -> None:
    widths = find_widths(MODELS["vgg without norms"]())
    slots = widths.group("features.5").slots
    assert next(s.block for s in slots if s.tensor == "classifier.0.weight") == 7 * 7


def test_a_plain_sequential_of_convolutions_is_cut_as_ever() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(32, 3)
    )
    groups = find_widths(model).groups
    assert [(g.name, g.units, g.depth) for g in groups] == [("0", 6, "hidden"), ("2", 8, "stream")]


def test_concatenated_channels_stay_whole_and_mode_block_is_refused_by_name() -> None:
    base = UNet().eval()
    widths = find_widths(base)
    assert [group.name for group in widths.groups] == ["deep.0"]
    assert {item.tensor for item in widths.left_out} >= {"down.weight", "deep.3.weight"}
    assert "operation cat" in next(i.reason for i in widths.left_out if i.tensor == "down.weight")
    assert "deep.3" in widths.block_refusal
    images = images_of("unet")
    for part in parts_of(widths, "stream"):
        expected = masked(base, widths, part)(images)
        torch.testing.assert_close(cut_module(base, widths, part)(images), expected)


def test_a_hidden_axis_that_nothing_scales_is_refused_for_mode_residual_by_name() -> None:
    widths = find_widths(MobileNet())
    with pytest.raises(WidthError, match=r"block\.2\.fc1 \(Conv2d\) adds up the hidden axis"):
        residual_parts(widths, [0.5, 0.5], seed=0, round=0)


def test_scales_are_given_to_the_layers_that_no_norm_follows_and_to_no_others() -> None:
    widths = find_widths(with_scales(MobileNet()))
    gates = [f"features.{i}.block.2.fc1.scale" for i in (1, 2, 3)]
    assert list(widths.scales) == [*gates, "classifier.0.scale"]
    assert "features.2.block.3.0" in widths.normed
    assert residual_parts(widths, [0.5, 0.5], seed=0, round=0)
    assert not find_widths(with_scales(UNet())).residual_refusal


class Strange(nn.Module):
    """A convolutional net with something in its middle."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.middle = middle
        self.second = nn.Conv2d(8, 8, 3)
        self.third = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.second(torch.relu(self.middle(self.first(images))))
        logits: Tensor = self.head(torch.relu(self.third(torch.relu(maps))).mean((2, 3)))
        return logits


class Scaled(nn.Module):
    """One learned factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.gamma


class Factor(nn.Module):
    """One learned factor for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.gamma


@pytest.mark.parametrize(
    ("middle", "tensor", "reason"),
    [
        (nn.LocalResponseNorm(2), "first.weight", "middle (LocalResponseNorm), which may mix"),
        (nn.Softmax2d(), "first.weight", "middle (Softmax2d)"),
        (nn.LayerNorm([8, 30, 30]), "middle.weight", "middle (LayerNorm) is not a layer that can"),
        (nn.ChannelShuffle(2), "first.bias", "middle (ChannelShuffle)"),
        (Scaled(), "middle.gamma", "middle.gamma is a bare parameter"),
        (Factor(), "middle.gamma", "one number for all channels"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_is_not_understood_stays_whole_and_says_why(
    middle: nn.Module, tensor: str, reason: str
) -> None:
    base = Strange(middle)
    widths = find_widths(base)
    assert reason in next(item.reason for item in widths.left_out if item.tensor == tensor)
    assert widths.block_refusal
    images = images_of("strange", 2)
    for part in parts_of(widths, "stream"):
        expected = masked(base, widths, part)(images)
        torch.testing.assert_close(cut_module(base, widths, part)(images), expected)


def test_layers_that_share_a_weight_are_cut_alike() -> None:
    base = Strange(nn.ReLU())
    base.third.weight = base.second.weight
    widths = find_widths(base)
    assert [(group.name, group.depth) for group in widths.groups] == [("first", "stream")]
    images = images_of("strange", 2)
    for part in parts_of(widths, "stream"):
        narrow = cut_module(base, widths, part)
        expected = masked(base, widths, part)(images)
        torch.testing.assert_close(narrow(images), expected)


def test_a_layer_that_is_called_twice_is_one() -> None:
    base = Strange(nn.ReLU())
    base.third = base.second
    groups = find_widths(base).groups
    assert [(group.name, group.units, group.depth) for group in groups] == [("first", 8, "stream")]


class Undecided(Strange):
    """Looks at values, which no tracer can."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if float(images.mean()) > 0 else -images)


def test_a_model_that_cannot_be_followed_is_refused_with_the_reason() -> None:
    with pytest.raises(WidthError, match=r"layers of Undecided cannot be followed: torch\.fx"):
        find_widths(Undecided(nn.Identity()))


def test_following_a_model_leaves_its_modes_as_they_were() -> None:
    model = ResNet(BasicBlock).train()
    model.bn1.eval()
    find_widths(model)
    assert model.training
    assert model.layer1.training
    assert not model.bn1.training


def test_constants_and_sizes_of_forward_itself_are_no_tensors_of_the_model() -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.spread = torch.tensor([0.2, 0.3, 0.4])  # no buffer
            self.head = nn.Linear(8, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            centred = (inputs - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) * 2
            maps = self.b(self.a(centred / self.spread.view(1, 3, 1, 1)).relu()).relu()
            scores: Tensor = self.head(maps.mean((2, 3)))
            return scores

    widths = find_widths(Normalising())
    assert {group.name: group.units for group in widths.groups} == {"a": 8, "b": 8}

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
            self.c, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            maps = self.c(self.b(self.a(inputs).relu()).relu())
            means = maps.mean((maps.dim() - 2, maps.dim() - 1))
            scores: Tensor = self.head(means.flatten(maps.dim() - 3))
            return scores

    found = find_widths(Computed())  # what it computes is not followed, and so stays whole
    assert [group.name for group in found.groups] == ["a", "b"]
