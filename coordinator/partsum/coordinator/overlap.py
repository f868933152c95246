"""Units that several parts hold, in mode residual: how often they count in the base.

The base multiplies what a hidden group adds up to by 1/K, so that its sum over all units is the
mean of the K parts' sums. A unit that m parts hold is in m of these sums, so it must count m times:
in the base, the weights that read it are m times what they are in the parts. (Cut: divided by m;
merged: multiplied. The base keeps one constant, and nothing of who held what.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from partsum.coordinator.contribution import Contribution, Readable, rows_of
from partsum.coordinator.relevance.layers import layer_kind
from partsum.shared.errors import WidthError
from partsum.shared.part import Part
from partsum.shared.width import Slot, WidthGroup, Widths
from partsum.shared.width.scaled import readers


class Overlap:
    """The parts of one round, and how many of them hold each unit.

    Where no unit is held twice, cut and merge are left as they are, to the bit. Elsewhere a cut
    that is merged again is the base to rounding, and to the bit for counts that are powers of two.
    Raises WidthError where a shared unit is added up by a layer of an unknown kind.
    """

    def __init__(self, model: nn.Module, widths: Widths, parts: Sequence[Part]) -> None:
        self._model = model
        self._readers: dict[str, tuple[Slot, str, Tensor]] = {}
        for group in widths.groups:
            if (counts := _counts(group, parts)) is not None:
                found = scaled_readers(model, widths, group)
                _check_readers(model, group, found)
                self._readers |= {slot.tensor: (slot, group.name, counts) for slot in found}

    def to_part(self, tensors: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
        """A part's tensors as they were cut from the base -> as the part has them."""
        factors = self._factors(part)
        return {
            name: (tensor / factors[name]).to(tensor.dtype) if name in factors else tensor
            for name, tensor in tensors.items()
        }

    def to_base(self, share: Contribution) -> Contribution:
        """A part's tensors -> as the base has them."""
        factors = self._factors(share.part)
        if not factors:
            return share
        return Contribution(share.part, _Multiplied(share.tensors, factors), share.weight)

    def _factors(self, part: Part) -> dict[str, Tensor]:
        """By tensor: m for each unit, in a shape that broadcasts over the part's tensor."""
        return {
            name: _along(self._model.get_parameter(name), slot, counts[list(part.units[group])])
            for name, (slot, group, counts) in self._readers.items()
        }


class _Multiplied:
    """Tensors of which some are multiplied as they are read."""

    def __init__(self, tensors: Readable, factors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._factors = factors

    def read(self, name: str) -> Tensor:
        """The tensor of that name."""
        found, factor = self._tensors.read(name), self._factors.get(name)
        return found if factor is None else found * factor

    def read_rows(self, name: str, first: int, last: int, lead: int = 1) -> Tensor:
        """Rows of it, which its first ``lead`` dimensions count."""
        found, factor = self._tensors.read_rows(name, first, last, lead), self._factors.get(name)
        if factor is None:
            return found
        assert lead == 1, f"{name} is cut in its first or second dimension"
        rows = rows_of(factor)
        return found * (rows if len(rows) == 1 else rows[first:last])


def scaled_readers(model: nn.Module, widths: Widths, group: WidthGroup) -> list[Slot]:
    """Where a group is added up: by a layer with one of the scales, or with a norm behind it."""
    found = []
    for slot in group.slots:
        path, _, name = slot.tensor.rpartition(".")
        summed = f"{path}.scale" in widths.scales or path in widths.normed
        if name == "weight" and summed:
            kind = layer_kind(model.get_submodule(path))
            if kind is not None and kind.reads == slot.dim:
                found.append(slot)
    return found


def _check_readers(model: nn.Module, group: WidthGroup, known: Sequence[Slot]) -> None:
    """Raise WidthError where a group is added up by a layer whose weights cannot be told apart."""
    unknown = set(readers(model, [group])) - {slot.tensor.rpartition(".")[0] for slot in known}
    if unknown:
        path = sorted(unknown)[0]
        raise WidthError(
            f"units of width group {group.name!r} cannot be shared by several parts: {path} "
            f"({type(model.get_submodule(path)).__name__}) adds them up, and cannot let one "
            "of them count more than once; set relevance.shared = 0"
        )


def _counts(group: WidthGroup, parts: Sequence[Part]) -> Tensor | None:
    """float32 (units,): how many parts hold each; None where the group is whole or held once."""
    if any(group.name not in part.units for part in parts):
        return None
    held = Counter(unit for part in parts for unit in part.units[group.name])
    if max(held.values(), default=1) == 1:
        return None
    return torch.tensor([float(max(1, held[unit])) for unit in range(group.units)])


def _along(weight: Tensor, slot: Slot, counts: Tensor) -> Tensor:
    """Each kept unit's count, repeated as the slot repeats units, along the slot's dimension."""
    indices = counts.repeat_interleave(slot.block).repeat(len(slot.offsets))
    return indices.view([-1 if dim == slot.dim else 1 for dim in range(weight.dim())])
