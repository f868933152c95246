"""Gates: a branch that is off is not there, and computes what the base does with it at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from partsum.coordinator.contribution import Contribution, Tensors
from partsum.coordinator.merge import AVERAGE, merge_state
from partsum.shared.errors import WidthError
from partsum.shared.gates import (
    Gate,
    PartialGate,
    branch_gate,
    check_gates,
    find_structure,
    partial_gates,
    splittable_groups,
)
from partsum.shared.gates.rules import transformer_branches
from partsum.shared.messages import Part
from partsum.shared.moments import part_digest
from partsum.shared.part import WHOLE, absent, cut_module, cut_tensors, fresh_module
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tasks.residual import ResidualMlp
from partsum.shared.tasks.transformer import Vit
from partsum.shared.width import Widths


class BasicBlock(nn.Module):
    """torchvision's, in short."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.downsample = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(stream)))))
        out += stream if self.downsample is None else self.downsample(stream)
        added: Tensor = self.relu(out)
        return added


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, 1, 1)
        self.layer1 = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 6))
        self.layer2 = nn.Sequential(BasicBlock(6, 8, 2), BasicBlock(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer2(self.layer1(self.stem(images))).mean(dim=(2, 3)))
        return logits


class Own(nn.Module):
    """A model that says its own gates, whose branch has names that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.side = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.first(inputs)
        logits: Tensor = self.head(stream + self.side(stream))
        return logits

    def structure_gates(self) -> Sequence[Gate]:
        return [branch_gate(self, "side", ["side"])]


def _vit() -> nn.Module:
    return Vit(size=8, patch=4, width=24, heads=6, layers=2, hidden=36, classes=5)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "vit": (_vit, [f"blocks.{k}.{name}" for k in (0, 1) for name in ("attention", "mlp")]),
    "residual mlp": (
        lambda: ResidualMlp(64, 12, 20, 3, 5),
        ["blocks.0", "blocks.1", "blocks.2"],
    ),
    "resnet": (ResNet, ["layer1.0", "layer1.1", "layer2.1"]),
    "a model's own word": (Own, ["side"]),
}
KINDS = pytest.mark.parametrize("kind", MODELS)


def base_of(kind: str) -> nn.Module:
    """A model whose every parameter is random, also those that begin as 0 or 1."""
    model = fresh_module(MODELS[kind][0](), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def inputs_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (3, 12) if isinstance(model, Own | nn.Sequential) else (3, 1, 8, 8)
    return torch.randn(shape, generator=generator)


def silenced(model: nn.Module, gate: Gate) -> nn.Module:
    """The base with the output of the branch's last module multiplied by zero."""
    model = copy.deepcopy(model)
    last = model.get_submodule(gate.skips[-1].path)
    last.register_forward_hook(lambda _module, _inputs, output: output * 0.0)
    return model


@KINDS
def test_the_residual_branches_are_found_in_order_and_named(kind: str) -> None:
    assert [gate.name for gate in find_structure(base_of(kind)).gates] == MODELS[kind][1]


@KINDS
def test_with_all_gates_on_a_part_is_the_base(kind: str) -> None:
    model = base_of(kind)
    widths = find_structure(model)
    part = Part(gates={gate.name: True for gate in widths.gates})
    cut = cut_module(model, widths, part)
    inputs = inputs_of(model)
    assert torch.equal(cut(inputs), model(inputs))
    assert {name: t.tolist() for name, t in cut.state_dict().items()} == {
        name: t.tolist() for name, t in model.state_dict().items()
    }


@KINDS
def test_with_a_gate_off_the_branch_is_gone_and_the_rest_computes_as_if_it_were_silent(
    kind: str,
) -> None:
    model = base_of(kind)
    widths, inputs = find_structure(model), inputs_of(model)
    for gate in widths.gates:
        part = Part(gates={gate.name: False})
        cut = cut_module(model, widths, part)
        assert gate.tensors
        assert cut.state_dict().keys() == model.state_dict().keys() - set(gate.tensors)
        assert torch.equal(cut(inputs), silenced(model, gate)(inputs))
        assert not torch.allclose(cut(inputs), model(inputs))
        state = cut_tensors(model.state_dict(), widths, part)
        assert state.keys() == cut.state_dict().keys()
        fresh = fresh_module(cut, seed=1)  # trains: every parameter that is left gets a gradient
        fresh(inputs).square().sum().backward()
        assert all(parameter.grad is not None for parameter in fresh.parameters())


def test_a_narrow_part_may_lack_branches_too() -> None:
    model = base_of("vit")
    widths = find_structure(model)
    units = {group.name: tuple(range(group.units // 2)) for group in widths.groups}
    part = Part(units, {"blocks.0.attention": False, "blocks.1.mlp": False})
    cut = cut_module(model, widths, part)
    expected = cut_tensors(model.state_dict(), widths, part)
    assert {n: t.shape for n, t in cut.state_dict().items()} == {
        n: t.shape for n, t in expected.items()
    }
    assert not {name for name in expected if name.startswith("blocks.0.attention.")}
    assert cut(inputs_of(model)).shape == (3, 5)


def test_a_block_whose_mlp_reads_the_attentions_norm_has_no_gates() -> None:
    block = nn.Module()
    block.ln_1, block.attn, block.mlp = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
    assert list(transformer_branches(block)) == []
    block.ln_2 = nn.LayerNorm(8)
    assert [branch.name for branch in transformer_branches(block)] == ["attn", "mlp"]


def dense() -> nn.Module:
    return fresh_module(Mlp(12, [9, 8, 7], 5), seed=2).eval()


def split_sum(model: nn.Module, path: str, splits: int, off: set[int]) -> Callable[..., Tensor]:
    """The reference: the whole layer asked about one group of its inputs at a time."""
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    edges = [layer.in_features * k // splits for k in range(splits + 1)]
    runs, first = [], 0
    for last in (*sorted(off), splits):
        runs.append((edges[first], edges[last], (last - first) / splits))
        first = last

    def forward(inputs: Tensor) -> Tensor:
        nothing = layer(torch.zeros_like(inputs))
        found = torch.zeros(len(inputs), layer.out_features)
        for start, stop, share in runs:
            masked = torch.zeros_like(inputs)
            masked[:, start:stop] = inputs[:, start:stop]
            found = found + torch.relu(layer(masked) - nothing + share * nothing)
        return found

    return forward


@given(st.integers(2, 5), st.sets(st.integers(1, 4)), st.booleans())
@settings(max_examples=25, deadline=None)
def test_sums_that_are_left_out_go_through_the_activation_by_themselves(
    splits: int, off: set[int], both: bool
) -> None:
    off = {index for index in off if index < splits}
    model = dense()
    widths = find_structure(model)
    layers = ["linear1", "linear2"] if both else ["linear2"]
    gates = {PartialGate(name, k, splits).name: False for name in layers for k in off}
    check_gates(model, widths, gates)
    cut = cut_module(model, widths, Part(gates=gates))
    assert {n: t.tolist() for n, t in cut.state_dict().items()} == {
        n: t.tolist() for n, t in model.state_dict().items()
    }
    inputs = inputs_of(model)
    first = split_sum(model, "linear1", splits, off if both else set())
    second = split_sum(model, "linear2", splits, off)
    third = model.get_submodule("linear3")
    expected = model.get_submodule("head")(torch.relu(third(second(first(inputs)))))
    torch.testing.assert_close(cut(inputs), expected)
    if not off:
        assert torch.equal(cut(inputs), model(inputs))


def test_partial_gates_are_offered_between_linear_layers_and_not_in_attention() -> None:
    model = base_of("vit")
    widths = find_structure(model)
    assert set(splittable_groups(model, widths)) == {"blocks.0.hidden", "blocks.1.hidden"}
    names = [gate.name for gate in partial_gates(model, widths, 3)]
    assert names[:2] == ["blocks.0.hidden+1/3", "blocks.0.hidden+2/3"]
    off = Part(gates=dict.fromkeys(names, False))
    inputs = inputs_of(model)
    assert not torch.allclose(cut_module(model, widths, off)(inputs), model(inputs))


class Nested(nn.Module):
    """A branch within which there is a block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Sequential(nn.Linear(12, 12), ResidualMlp(12, 12, 9, 2, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs + self.side(inputs))
        return logits

    def structure_gates(self) -> Sequence[Gate]:
        inner = [f"side.1.blocks.{k}" for k in (0, 1)]
        return [
            branch_gate(self, "side", ["side"]),
            *(
                branch_gate(self, path, [f"{path}.{n}" for n in ("norm", "up", "down")])
                for path in inner
            ),
        ]


def test_a_branch_within_a_branch_goes_with_it() -> None:
    model = Nested()
    widths = find_structure(model)
    inputs = torch.randn(3, 12)
    off = Part(gates=dict.fromkeys((gate.name for gate in widths.gates), False))
    cut = cut_module(model, widths, off)
    assert cut.state_dict().keys() == {"head.weight", "head.bias"}
    assert torch.equal(cut(inputs), model.head(inputs))


def test_sums_of_a_layer_that_left_with_its_branch_are_nobodys() -> None:
    model = base_of("vit")
    widths, inputs = find_structure(model), inputs_of(model)
    branch = {"blocks.0.mlp": False}
    both = {**branch, "blocks.0.hidden+1/2": False}
    without, same = (cut_module(model, widths, Part(gates=gates)) for gates in (branch, both))
    assert torch.equal(without(inputs), same(inputs))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["blocks.9.mlp"], "no gate 'blocks.9.mlp'"),
        (["blocks.0.heads+1/2"], "groups between two linear layers"),
        (["blocks.0.hidden+1/99"], "no more than 24 inputs"),
        (["blocks.0.hidden+1/2", "blocks.0.hidden+1/3"], "it can be one of them"),
        (["blocks.0.hidden+3/3"], "no gate 'blocks.0.hidden\\+3/3'"),
    ],
)
def test_gates_that_a_model_does_not_have_are_refused_in_words(names: list[str], said: str) -> None:
    model = base_of("vit")
    with pytest.raises(WidthError, match=said):
        check_gates(model, find_structure(model), names)


def test_a_part_is_the_same_whether_a_gate_is_said_to_be_on_or_not_named() -> None:
    assert hash(Part(gates={"a": True})) == hash(WHOLE)
    assert part_digest(Part(gates={"a": True})) == part_digest(WHOLE)
    assert part_digest(Part(gates={"a": False})) != part_digest(WHOLE)


def variant(model: nn.Module, widths: Widths, off: Sequence[str], value: float) -> Contribution:
    part = Part(gates=dict.fromkeys(off, False))
    state = cut_tensors(model.state_dict(), widths, part)
    return Contribution(
        part, Tensors({name: torch.full_like(t, value) for name, t in state.items()}), value
    )


def test_a_tensor_is_averaged_over_the_variants_that_carried_it() -> None:
    model = base_of("vit")
    widths = find_structure(model)
    first = variant(model, widths, ["blocks.0.attention", "blocks.1.mlp"], 1.0)
    second = variant(model, widths, ["blocks.1.mlp"], 3.0)
    old = model.state_dict()
    merged = merge_state(old, [first, second], widths, AVERAGE)
    attention = absent(widths, Part(gates={"blocks.0.attention": False}))
    mlp = absent(widths, Part(gates={"blocks.1.mlp": False}))
    for name, tensor in merged.items():
        if name in mlp:
            assert torch.equal(tensor, old[name])  # nobody carried it
        else:
            value = 3.0 if name in attention else (1.0 + 3.0 * 3.0) / 4.0
            torch.testing.assert_close(tensor, torch.full_like(old[name], value))


def test_merging_one_variant_and_cutting_it_again_gives_its_bytes() -> None:
    model, other = base_of("resnet"), base_of("resnet")
    widths = find_structure(model)
    part = Part(gates={"layer1.1": False})
    mine = cut_tensors(fresh_module(other, 9).state_dict(), widths, part)
    share = Contribution(part, Tensors(mine), 5.0)
    merged = merge_state(model.state_dict(), [share], widths, AVERAGE)
    again = cut_tensors(merged, widths, part)
    assert all(torch.equal(again[name], tensor) for name, tensor in mine.items())
