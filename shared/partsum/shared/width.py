"""Width groups: which tensors hold the units of each width axis of a model.

A **unit** is the smallest thing that can be kept or left out of a layer (a neuron, an attention
head, a channel of the residual stream); a **group** is all the interchangeable units of one axis.
A model says its own groups by a method ``width_groups() -> Widths``; a plain ``nn.Sequential`` of
Linear and Conv2d layers needs none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from partsum.shared.errors import WidthError


@dataclass(frozen=True)
class Slot:
    """Where a group's units live in one tensor.

    Unit u owns ``block`` consecutive indices of dimension ``dim``, starting at
    ``offset + u * block`` for every offset (a fused qkv weight has three).
    """

    tensor: str
    dim: int
    block: int = 1
    offsets: tuple[int, ...] = (0,)

    def index(self, units: Tensor) -> Tensor:
        """The indices along ``dim`` that belong to ``units`` (int64, 1-D)."""
        inside = (units[:, None] * self.block + torch.arange(self.block)).reshape(-1)
        return torch.cat([offset + inside for offset in self.offsets])


@dataclass(frozen=True)
class Count:
    """An integer attribute of a module that counts units: ``per_unit`` for each one kept."""

    module: str
    attribute: str
    per_unit: int = 1


@dataclass(frozen=True)
class WidthGroup:
    """All interchangeable units of one width axis.

    ``depth`` says which mode cuts it: "hidden" axes lie inside a branch or between two layers and
    are cut in both modes; "stream" axes connect them (a residual stream) and are cut in mode
    block only.
    """

    name: str
    units: int
    depth: Literal["hidden", "stream"]
    slots: tuple[Slot, ...]
    counts: tuple[Count, ...] = ()


@dataclass(frozen=True)
class Widths:
    """All that cutting and merging need to know of a model.

    ``readouts`` are the weights whose sliced columns add up to the model's output: the merge
    weighs them, so that the merged model's output is the parts' mean. ``scales`` are 0-dim buffers
    that multiply what a hidden group adds up to: 1 in a part, 1/K in a base in mode residual (the
    constant branch multiplier of ResIST, 2107.00961).
    """

    groups: tuple[WidthGroup, ...]
    readouts: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()

    def group(self, name: str) -> WidthGroup:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)


@runtime_checkable
class HasWidths(Protocol):
    """A model that says its own width groups."""

    def width_groups(self) -> Widths:
        """The model's width groups."""
        ...


class ScaledLinear(nn.Linear):
    """A Linear whose product is multiplied by ``scale`` before the bias is added.

    Put it where a hidden group is added up (a down projection): mode residual sets ``scale`` to
    1/K in the base, so that the base's sum over all units is the mean of the parts' sums.
    """

    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("scale", torch.ones(()))

    def reset_parameters(self) -> None:
        """Standard Linear initialisation; the scale goes back to 1."""
        super().reset_parameters()
        if "scale" in self._buffers:  # the first call comes from nn.Linear.__init__
            self.scale.fill_(1.0)

    def forward(self, input: Tensor) -> Tensor:
        """``scale * (input @ weight.T) + bias``."""
        product = nn.functional.linear(input, self.weight) * self.scale
        return product if self.bias is None else product + self.bias


@dataclass
class Axis:
    """A width group under construction, in terms of the modules that it runs through."""

    model: nn.Module
    name: str
    units: int
    depth: Literal["hidden", "stream"]
    slots: list[Slot] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)

    def made_by(self, path: str, block: int = 1, offsets: tuple[int, ...] = (0,)) -> Axis:
        """The module's output is this axis: Linear and Conv rows, Embedding columns."""
        module = self.model.get_submodule(path)
        if isinstance(module, nn.Embedding):
            return self.held_by(f"{path}.weight", 1, block, offsets)
        self.held_by(f"{path}.weight", 0, block, offsets)
        if module.bias is not None:
            self.held_by(f"{path}.bias", 0, block, offsets)
        return self

    def read_by(self, path: str, block: int = 1) -> Axis:
        """The module's input is this axis: Linear and Conv columns."""
        return self.held_by(f"{path}.weight", 1, block)

    def normed_by(self, path: str) -> Axis:
        """A normalisation over this axis; its running statistics are cut with it."""
        module = self.model.get_submodule(path)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, tensor in tensors.items():
            if tensor.dim() == 1:
                self.held_by(f"{path}.{name}", 0)
        return self

    def held_by(
        self, tensor: str, dim: int, block: int = 1, offsets: tuple[int, ...] = (0,)
    ) -> Axis:
        """The named tensor's dimension is this axis."""
        self.slots.append(Slot(tensor, dim, block, offsets))
        return self

    def counted_by(self, module: str, attribute: str, per_unit: int = 1) -> Axis:
        """The module's integer attribute counts this axis's units."""
        self.counts.append(Count(module, attribute, per_unit))
        return self

    def done(self) -> WidthGroup:
        """The finished group."""
        return WidthGroup(self.name, self.units, self.depth, tuple(self.slots), tuple(self.counts))


def find_widths(model: nn.Module) -> Widths:
    """The width groups of a model: its own word, or those of a plain chain.

    Raises:
        WidthError: the model has none, or says something that does not fit its tensors.
    """
    widths = model.width_groups() if isinstance(model, HasWidths) else chain_widths(model)
    check_widths(model, widths)
    return widths


def chain_widths(model: nn.Module, prefix: str = "") -> Widths:
    """The groups of an ``nn.Sequential``: what lies between two Linear or Conv2d layers.

    Every other axis is "hidden", the ones between are "stream", so that mode residual covers every
    weight. Layers in between must act on each unit alone: activations, dropout, pooling, and the
    norms over the axis.
    """
    axes: list[Axis] = []
    scales: list[str] = []
    last = ""
    for name, module in model.named_children() if isinstance(model, nn.Sequential) else ():
        path = f"{prefix}{name}"
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Conv2d) and module.groups != 1:
                raise WidthError(
                    f"layer {path} is a grouped convolution, which the chain rule cannot cut; "
                    "give the model a width_groups() method (docs/tutorial.md)"
                )
            if axes:
                _close_axis(axes[-1], model, last, path)
                if axes[-1].depth == "hidden" and isinstance(module, ScaledLinear):
                    scales.append(f"{path}.scale")
            depth: Literal["hidden", "stream"] = "stream" if len(axes) % 2 else "hidden"
            axes.append(Axis(model, path, module.weight.shape[0], depth).made_by(path))
            last = path
        elif isinstance(module, _NORMS) and axes:
            axes[-1].normed_by(path)
        elif any(True for _ in module.parameters()):
            raise WidthError(
                f"layer {path} ({type(module).__name__}) holds parameters that the chain rule does "
                "not know; give the model a width_groups() method (docs/tutorial.md)"
            )
    if len(axes) < 2:
        raise WidthError(
            f"found no width groups in {type(model).__name__}: it is not an nn.Sequential with at "
            "least two Linear or Conv2d layers, and it has no width_groups() method. "
            "docs/tutorial.md shows how to write one in a few lines"
        )
    return Widths(tuple(axis.done() for axis in axes[:-1]), (f"{last}.weight",), tuple(scales))


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def _close_axis(axis: Axis, model: nn.Module, maker: str, reader: str) -> None:
    """Let the axis end at the layer that reads it; a flattened conv map is a block a channel."""
    weight = model.get_submodule(reader).weight
    assert isinstance(weight, Tensor)
    width = weight.shape[1]
    if width % axis.units:
        raise WidthError(
            f"layer {reader} reads {width} inputs, which is not a multiple of the "
            f"{axis.units} units that layer {maker} makes"
        )
    axis.read_by(reader, block=width // axis.units)


def check_widths(model: nn.Module, widths: Widths) -> None:
    """Raise WidthError unless every slot fits its tensor and no dimension is claimed twice."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    claimed: dict[tuple[str, int], str] = {}
    names = [group.name for group in widths.groups]
    for group in widths.groups:
        if names.count(group.name) > 1:
            raise WidthError(f"two width groups have the name {group.name!r}")
        _check_counts(model, group)
        for slot in group.slots:
            if slot.tensor not in tensors:
                raise WidthError(
                    f"width group {group.name!r} names the tensor {slot.tensor!r}, which the model "
                    "does not have"
                )
            shape = tensors[slot.tensor].shape
            if not 0 <= slot.dim < len(shape) or not _tiles(slot, group.units, shape[slot.dim]):
                raise WidthError(
                    f"width group {group.name!r} has {group.units} units of {slot.block} at "
                    f"offsets {slot.offsets} in dimension {slot.dim} of {slot.tensor!r}, "
                    f"whose shape is {tuple(shape)}"
                )
            other = claimed.setdefault((slot.tensor, slot.dim), group.name)
            if other != group.name:
                raise WidthError(
                    f"width groups {other!r} and {group.name!r} both claim dimension {slot.dim} of "
                    f"{slot.tensor!r}"
                )
    for name in (*widths.readouts, *widths.scales):
        if name not in tensors:
            raise WidthError(f"width_groups() names the tensor {name!r}, which does not exist")


def _tiles(slot: Slot, units: int, size: int) -> bool:
    """Whether the units own every index below ``size`` once."""
    if units < 1 or units * slot.block * len(slot.offsets) != size:
        return False
    return torch.equal(slot.index(torch.arange(units)).sort().values, torch.arange(size))


def _check_counts(model: nn.Module, group: WidthGroup) -> None:
    modules = dict(model.named_modules())
    for count in group.counts:
        found = getattr(modules.get(count.module), count.attribute, None)
        if found != count.per_unit * group.units:
            raise WidthError(
                f"width group {group.name!r} has {group.units} units, which {count.attribute!r} of "
                f"module {count.module!r} should count by {count.per_unit} each, but it is {found}"
            )
