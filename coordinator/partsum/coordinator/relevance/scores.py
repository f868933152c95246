"""Numbers for each weight into one score for each unit, by the slots of its width group.

All scores are `UnitScores` (planner/selection.py): the higher, the more a unit matters. What a
score says nothing about (a group whose tensors are of no known layer, say) is left out of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from partsum.coordinator.relevance.ard import THRESHOLD
from partsum.shared.width import Slot, WidthGroup, Widths


def magnitude_scores(model: nn.Module, widths: Widths) -> dict[str, Tensor]:
    """The L2 norm of each unit's weights, incoming and outgoing; vectors (biases, norms), which are
    on another scale, do not count."""
    squares = {
        name: parameter.detach().float().square()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.dim() > 1
    }
    sums = _by_group(squares, widths)
    return {name: total.sqrt() for name, (total, _) in sums.items()}


def ard_scores(log_alphas: Mapping[str, Tensor], widths: Widths) -> dict[str, Tensor]:
    """1 - alpha / (1 + alpha), in (0, 1), of each unit's alpha.

    log alpha of a unit is the mean over its incoming weights and the outgoing ones that match them.
    alpha / (1 + alpha) is the rate at which dropout of the same noise would drop it, so a unit of a
    *low* alpha is strong: the score is what is kept.
    """
    sums = _by_group(log_alphas, widths)
    return {name: torch.sigmoid(-total / count) for name, (total, count) in sums.items()}


def sparse_shares(log_alphas: Mapping[str, Tensor], widths: Widths) -> dict[str, float]:
    """By width group, the share of its units' weights that are noise (log alpha above 3)."""
    noise = {name: (values > THRESHOLD).float() for name, values in log_alphas.items()}
    sums = _by_group(noise, widths)
    return {name: float((total / count).mean()) for name, (total, count) in sums.items()}


def sums_by_unit(values: Mapping[str, Tensor], widths: Widths) -> dict[str, Tensor]:
    """The sum over each unit's elements of tensors that have a number for each element."""
    return {name: total for name, (total, _) in _by_group(values, widths).items()}


def _by_group(values: Mapping[str, Tensor], widths: Widths) -> dict[str, tuple[Tensor, float]]:
    """For each group that any tensor speaks of: sums (units,) on the CPU, and elements a unit."""
    found = {}
    for group in widths.groups:
        slots = [slot for slot in group.slots if slot.tensor in values]
        if slots:
            sums = [_slot_sums(values[slot.tensor], slot, group) for slot in slots]
            count = sum(values[slot.tensor].numel() for slot in slots) / group.units
            found[group.name] = torch.stack(sums).sum(0), count
    return found


def _slot_sums(values: Tensor, slot: Slot, group: WidthGroup) -> Tensor:
    """The sum of one tensor's elements by unit: float64 (units,), on the CPU."""
    others = [dim for dim in range(values.dim()) if dim != slot.dim]
    by_index = values.double().sum(others) if others else values.double()
    return by_unit(by_index.cpu(), slot, group.units)


def by_unit(by_index: Tensor, slot: Slot, units: int) -> Tensor:
    """Sums over what each unit owns along a slot's dimension: (size,) -> (units,)."""
    owned = by_index[slot.index(torch.arange(units))]
    return owned.view(len(slot.offsets), units, slot.block).sum((0, 2))
