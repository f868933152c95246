"""What a width group is, and what must hold of a model's groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from partsum.shared.errors import WidthError
from partsum.shared.width.gate import Gate

Depth = Literal["hidden", "stream"]
"""Which mode cuts an axis: "hidden" ones lie inside a branch or between two layers and are cut in
every mode; "stream" ones connect them (a residual stream) and are cut in mode block only."""


@dataclass(frozen=True)
class Slot:
    """Where a group's units live in one tensor.

    Unit u owns ``block`` consecutive indices of dimension ``dim``, starting at
    ``offset + u * block`` for every offset (a fused qkv weight has three). A group may have several
    slots in one dimension: queries in blocks of several heads, keys and values in blocks of one.
    ``size`` is the dimension's length where the units do not own all of it: the rest is kept whole.
    A part's tensor holds what it keeps in the base's order.
    """

    tensor: str
    dim: int
    block: int = 1
    offsets: tuple[int, ...] = (0,)
    size: int | None = None

    def index(self, units: Tensor) -> Tensor:
        """The indices along ``dim`` that belong to ``units`` (int64, 1-D)."""
        block = torch.arange(self.block, device="cpu")  # whatever device a model is built on
        inside = (units[:, None] * self.block + block).reshape(-1)
        return torch.cat([offset + inside for offset in self.offsets])


@dataclass(frozen=True)
class Count:
    """An integer attribute of a module that counts units: ``per_unit`` for each one kept.

    ``attribute`` may be dotted, as ``config.num_attention_heads``: the module then gets a copy of
    its config, since modules share one.
    """

    module: str
    attribute: str
    per_unit: int = 1


@dataclass(frozen=True)
class WidthGroup:
    """All interchangeable units of one width axis."""

    name: str
    units: int
    depth: Depth
    slots: tuple[Slot, ...]
    counts: tuple[Count, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A tensor that stays whole in every part, or partly so, and why."""

    tensor: str
    reason: str


@dataclass(frozen=True)
class Widths:
    """All that cutting and merging need to know of a model.

    ``readouts`` are the tensors whose slices weigh what adds up to the model's output: the merge
    multiplies each part's by its weight, so that the merged model's output is the parts' mean. It
    is the head's weight; or, where that is tied to the embeddings, those of the norm before it.
    ``scales`` are 0-dim buffers that multiply what a hidden group adds up to: 1 in a part, 1/K in a
    base in mode residual (the constant branch multiplier of ResIST, 2107.00961).
    ``left_out`` says what stays whole and why, and ``block_refusal`` why mode block cannot cut the
    model; it is empty where it can. ``gates`` are the residual branches that a part may lack: they
    are filled in by `partsum.shared.gates.find_structure`.
    """

    groups: tuple[WidthGroup, ...]
    readouts: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    block_refusal: str = ""
    gates: tuple[Gate, ...] = ()

    def group(self, name: str) -> WidthGroup:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)


@runtime_checkable
class HasWidths(Protocol):
    """A model that says its own width groups."""

    def width_groups(self) -> Widths:
        """The model's width groups."""
        ...


def all_units(group: WidthGroup) -> Tensor:
    """Every unit of a group (int64, 1-D), on the CPU whatever device a model is built on."""
    return torch.arange(group.units, device="cpu")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, tied ones under each of their names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return dict(chain(parameters, model.named_buffers(remove_duplicate=False)))


def count_of(module: nn.Module | None, attribute: str) -> object:
    """A module's attribute, which may be dotted; None where there is none."""
    found: object = module
    for name in attribute.split("."):
        found = getattr(found, name, None)
    return found


def check_widths(model: nn.Module, widths: Widths) -> None:
    """Raise WidthError unless every slot fits its tensor and no index is claimed twice."""
    tensors = named_tensors(model)
    claims: dict[tuple[str, int], list[tuple[str, Slot]]] = {}
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
            if not 0 <= slot.dim < tensors[slot.tensor].dim():
                raise _misfit(group, slot, tensors[slot.tensor])
            claims.setdefault((slot.tensor, slot.dim), []).append((group.name, slot))
    for (name, dim), slots in claims.items():
        _check_claims(widths, slots, tensors[name].shape[dim], tensors[name])
    left_out = (kept.tensor for kept in widths.left_out)
    for name in (*widths.readouts, *widths.scales, *left_out):
        if name not in tensors:
            raise WidthError(f"width_groups() names the tensor {name!r}, which does not exist")


def _check_claims(widths: Widths, slots: list[tuple[str, Slot]], size: int, tensor: Tensor) -> None:
    """All slots in one dimension: in range, none over another, and none left over in silence."""
    owner = [""] * size
    for name, slot in slots:
        group = widths.group(name)
        if not _is_inside(slot, group.units, size) or slot.size not in (None, size):
            raise _misfit(group, slot, tensor)
        for index in slot.index(all_units(group)).tolist():
            if owner[index] == name:
                raise _misfit(group, slot, tensor)
            if owner[index]:
                raise WidthError(
                    f"width groups {owner[index]!r} and {name!r} both claim dimension {slot.dim} "
                    f"of {slot.tensor!r}"
                )
            owner[index] = name
    for name, slot in slots:
        if slot.size is None and owner.count(name) != size:
            raise _misfit(widths.group(name), slot, tensor)


def _is_inside(slot: Slot, units: int, size: int) -> bool:
    if units < 1 or slot.block < 1 or not slot.offsets:
        return False
    return min(slot.offsets) >= 0 and max(slot.offsets) + units * slot.block <= size


def _misfit(group: WidthGroup, slot: Slot, tensor: Tensor) -> WidthError:
    return WidthError(
        f"width group {group.name!r} has {group.units} units of {slot.block} at offsets "
        f"{slot.offsets} in dimension {slot.dim} of {slot.tensor!r}, whose shape is "
        f"{tuple(tensor.shape)}: they must own each index once, or say with size= that the rest is "
        "kept whole"
    )


def _check_counts(model: nn.Module, group: WidthGroup) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    for count in group.counts:
        found = count_of(modules.get(count.module), count.attribute)
        if found != count.per_unit * group.units:
            raise WidthError(
                f"width group {group.name!r} has {group.units} units, which {count.attribute!r} of "
                f"module {count.module!r} should count by {count.per_unit} each, but it is {found}"
            )


def tied_names(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """The names of each tensor that has more than one."""
    names: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model).items():
        names.setdefault(id(tensor), []).append(name)
    return (tuple(same) for same in names.values() if len(same) > 1)
