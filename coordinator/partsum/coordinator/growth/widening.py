"""Widening: one smaller trained model's units, copied, are the base's (Net2Net, 1511.05641).

Unit j of n becomes every n-th unit of the base from j on. Whatever reads an axis divides the
weights of a unit among its copies, so the wider model computes the same. Exact for whatever looks
at units one by one; over an axis that is normed (LayerNorm, RMSNorm) only if all units are copied
equally often, as mean and spread are then the same. Not exact: weights that both make and read an
axis (tied embeddings), and group norms.
"""

from __future__ import annotations

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from partsum.coordinator.clones import with_noise
from partsum.coordinator.growth.model import TrainedModel
from partsum.shared.part import Part, index_map
from partsum.shared.width import Widths
from partsum.shared.width.groups import all_units
from partsum.shared.width.layers import is_linear, output_dim


class Widened:
    """Merges one narrower model into a base by copying its units.

    ``noise`` is added to each widened matrix, as a share of its standard deviation: without, the
    copies of a unit get the same gradients and stay copies.
    """

    def __init__(
        self, model: nn.Module, widths: Widths, trained: TrainedModel, noise: float, seed: int
    ) -> None:
        self._trained = trained
        self._copies = copy_map(widths, trained.part)
        self._modules = dict(model.named_modules())
        self._first = first_names(model)
        self._noise = noise
        self._seed = seed

    def merge(self, name: str, old: Tensor) -> Tensor:
        """The widened tensor of that name; of ``old``, the base's, only the shape counts."""
        value = self._trained.read(name)
        name = self._first.get(name, name)
        for dim, source in self._copies.get(name, {}).items():
            value = value.index_select(dim, source)
            if dim == self._reading(name):
                copies = torch.bincount(source)[source]
                value = value / copies.view([-1 if d == dim else 1 for d in range(value.dim())])
        assert value.shape == old.shape, name
        if not self._noise or name not in self._copies:
            return value
        drawn = xxhash.xxh3_64_intdigest(f"{self._seed}/{name}".encode()) >> 1
        return with_noise(value, self._noise, torch.Generator().manual_seed(drawn))

    def _reading(self, name: str) -> int | None:
        """The dimension of a weight that is summed over, by the kind of its module; None: none."""
        path, _, leaf = name.rpartition(".")
        return reading_dim(self._modules[path]) if leaf.endswith("weight") else None


def first_names(model: nn.Module) -> dict[str, str]:
    """By every name of a parameter the first one, which width groups use: tied weights have two."""
    known: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: known.setdefault(id(parameter), name) for name, parameter in named}


def copy_map(widths: Widths, part: Part) -> dict[str, dict[int, Tensor]]:
    """By tensor and dimension, which of a narrower model's indices each of the base's copies.

    ``part`` keeps the first units of every group: as many as the model has. Groups that are as wide
    as the base's are left out.
    """
    moves: dict[tuple[str, int], list[tuple[Tensor, Tensor, int]]] = {}
    narrower = [group for group in widths.groups if len(part.units[group.name]) < group.units]
    for group in narrower:
        units = all_units(group)
        copied = units % len(part.units[group.name])
        for slot in group.slots:
            places = slot.index(units)
            size = slot.size or int(places.max()) + 1
            move = (places, slot.index(copied), size)
            moves.setdefault((slot.tensor, slot.dim), []).append(move)
    kept = index_map(widths, Part({group.name: part.units[group.name] for group in narrower}))
    found: dict[str, dict[int, Tensor]] = {}
    for (name, dim), pieces in moves.items():
        origin = torch.arange(max(size for _, _, size in pieces))  # what no unit owns: itself
        for places, sources, _ in pieces:
            origin[places] = sources
        narrow = torch.empty_like(origin)
        narrow[kept[name][dim]] = torch.arange(len(kept[name][dim]))
        found.setdefault(name, {})[dim] = narrow[origin]
    return found


def reading_dim(module: nn.Module) -> int | None:
    """Which dimension of a module's weight meets its input and is summed over; None where none is.

    Embeddings and norms have none, and what is not known counts as having none: then the base does
    not compute what the model does, and that is measured and said.
    """
    if isinstance(module, _ConvTransposeNd):
        return 0
    if is_linear(module):
        return 1 - output_dim(module)
    return 1 if isinstance(module, _ConvNd | nn.MultiheadAttention) else None
