"""Partial-sum gates: where, in a layer's sum over its inputs, the activation comes in.

    all on:   W2 act(W_1 x_1 + W_2 x_2 + W_3 x_3 + b)
    "+1" off: W2 (act(W_1 x_1 + b/3) + act(W_2 x_2 + W_3 x_3 + 2b/3))

The weights and their multiplications are the same; what moves is the non-linearity, and there are
as many sets of activations as groups of neighbouring sums. A gate's name says all that there is to
know of it: ``GROUP+I/S`` is the ``+`` after the I-th of S contiguous slices of what the layer reads
that makes the width group GROUP. So a node needs no settings to cut what it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partsum.shared.errors import WidthError
from partsum.shared.width import ScaledLinear, WidthGroup, Widths
from partsum.shared.width.layers import child, inputs_of, is_linear, output_dim


@dataclass(frozen=True)
class PartialGate:
    """The ``+`` after slice ``index`` (from 1) of ``splits`` in the layer that makes a group."""

    group: str
    index: int
    splits: int

    @property
    def name(self) -> str:
        """GROUP+I/S."""
        return f"{self.group}+{self.index}/{self.splits}"

    @classmethod
    def named(cls, name: str) -> PartialGate | None:
        """The gate of that name, or None where it is no partial-sum gate's."""
        group, plus, place = name.rpartition("+")
        index, slash, splits = place.partition("/")
        if not (group and plus and slash and index.isdecimal() and splits.isdecimal()):
            return None
        gate = cls(group, int(index), int(splits))
        return gate if 0 < gate.index < gate.splits else None


@dataclass(frozen=True)
class Layers:
    """The layers that make a width group's units out of one input, and the one that reads them."""

    makers: tuple[str, ...]
    reader: str


def layers_of(model: nn.Module, group: WidthGroup) -> Layers | None:
    """The group's layers, where it lies between linear ones alone; else None.

    None too where a closed branch has taken them away.
    """
    makers: list[str] = []
    readers: list[str] = []
    for slot in group.slots:
        path, _, name = slot.tensor.rpartition(".")
        module = child(model, path)
        if module is None or not is_linear(module) or slot.block != 1 or slot.size is not None:
            return None
        if name == "weight":
            (makers if slot.dim == output_dim(module) else readers).append(path)
    inputs = {inputs_of(model.get_submodule(path)) for path in makers}
    if len(readers) != 1 or len(inputs) != 1:
        return None
    return Layers(tuple(makers), readers[0])


def splittable_groups(model: nn.Module, widths: Widths) -> dict[str, Layers]:
    """The width groups that partial-sum gates are offered for, with their layers."""
    found = ((group.name, layers_of(model, group)) for group in widths.groups)
    return {name: layers for name, layers in found if layers is not None}


def partial_gates(model: nn.Module, widths: Widths, splits: int) -> list[PartialGate]:
    """All the gates where every layer that fits is split into so many slices."""
    return [
        PartialGate(group, index, splits)
        for group, layers in splittable_groups(model, widths).items()
        if inputs_of(model.get_submodule(layers.makers[0])) >= splits
        for index in range(1, splits)
    ]


def check_partial(model: nn.Module, widths: Widths, gates: Iterable[PartialGate]) -> None:
    """Raise WidthError where the model has no such gate, or two split a layer differently."""
    known = splittable_groups(model, widths)
    splits: dict[str, int] = {}
    for gate in gates:
        if gate.group not in known:
            raise WidthError(
                f"gate {gate.name!r} splits what makes width group {gate.group!r}, but the model's "
                f"groups between two linear layers are: {', '.join(known) or 'none'}"
            )
        wide = inputs_of(model.get_submodule(known[gate.group].makers[0]))
        if gate.splits > wide:
            raise WidthError(f"gate {gate.name!r}: the layer reads no more than {wide} inputs")
        if splits.setdefault(gate.group, gate.splits) != gate.splits:
            raise WidthError(
                f"gates split what makes {gate.group!r} into {splits[gate.group]} slices and into "
                f"{gate.splits}; it can be one of them"
            )


def split_layers(model: nn.Module, widths: Widths, gates: Iterable[PartialGate]) -> None:
    """Leave out the ``+`` of these gates, in place; tensors and their names stay."""
    off: dict[str, set[int]] = {}
    splits: dict[str, int] = {}
    for gate in gates:
        off.setdefault(gate.group, set()).add(gate.index)
        splits[gate.group] = gate.splits
    found = {name: layers_of(model, widths.group(name)) for name in off}
    layers = {name: pair for name, pair in found.items() if pair is not None}
    for name, pair in layers.items():
        for path in pair.makers:
            parent, _, leaf = path.rpartition(".")
            whole = model.get_submodule(path)
            split = SplitLinear(whole, splits[name], off[name])
            setattr(model.get_submodule(parent), leaf, split)
    for pair in layers.values():
        reader = model.get_submodule(pair.reader)
        reader.register_forward_pre_hook(sum_groups, prepend=True)


def sum_groups(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook before the layer that reads: it adds what its groups went through apart."""
    return (inputs[0].sum(0), *inputs[1:])


class SplitLinear(nn.Module):
    """A linear layer whose sum over its inputs is taken in groups, (..., in) -> (groups, ..., out).

    It holds the tensors of the layer that it is made of, under the same names. Each slice brings
    its share of the bias, so that all groups together add up to what that layer makes.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, whole: nn.Module, splits: int, off: set[int]) -> None:
        super().__init__()
        for name, parameter in whole._parameters.items():  # a bias may be None
            self.register_parameter(name, parameter)
        for name, buffer in whole.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self._forward_pre_hooks = whole._forward_pre_hooks  # a scale may be there, see `scaled`
        self._forward_hooks = whole._forward_hooks
        self.transposed = output_dim(whole) == 1
        # In a tuple it is no submodule: its tensors have one name, and this module's are they.
        self._whole = (whole,)
        self.groups = tuple(run_groups(inputs_of(whole), splits, off))

    def reset_parameters(self) -> None:
        """As the layer that it is made of."""
        reset = getattr(self._whole[0], "reset_parameters", None)
        if callable(reset):
            reset()
        if isinstance(scale := self._buffers.get("scale"), Tensor):
            scale.fill_(1.0)

    def forward(self, input: Tensor) -> Tensor:
        """Each group's sum, in order."""
        weight = self.weight.T if self.transposed else self.weight
        scale = self._buffers.get("scale") if isinstance(self._whole[0], ScaledLinear) else None
        sums = []
        for inside, share in self.groups:
            found = nn.functional.linear(input[..., inside], weight[:, inside])
            if scale is not None:
                found = found * scale
            sums.append(found if self.bias is None else found + share * self.bias)
        return torch.stack(sums)


def run_groups(inputs: int, splits: int, off: set[int]) -> Iterator[tuple[slice, float]]:
    """Runs of contiguous slices between the gates that are off, and their shares of the slices."""
    edges = [inputs * k // splits for k in range(splits + 1)]
    first = 0
    for last in (*sorted(off), splits):
        yield slice(edges[first], edges[last]), (last - first) / splits
        first = last
