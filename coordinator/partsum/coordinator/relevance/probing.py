"""Scores that look at data: what a few batches of training data do to each unit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from partsum.coordinator.relevance.layers import LayerKind, layer_kind
from partsum.coordinator.relevance.scores import by_unit, sums_by_unit
from partsum.shared.task import Samples, Task, gather, num_samples, walk
from partsum.shared.width import Slot, Widths

PROBE_SAMPLES = 2048
_BATCH = 128


def taylor_scores(
    model: nn.Module, widths: Widths, task: Task, samples: Samples, seed: int
) -> dict[str, Tensor]:
    """|weight x gradient|, summed over each unit's parameters, the mean over batches.

    To first order it bounds what the loss gains or loses without the unit (Molchanov et al. 2019,
    1906.10771, who square it). ``model`` is as before once this returns, without gradients.
    """
    found: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    named = list(model.named_parameters(remove_duplicate=False))
    batches = 0
    model.eval()
    for inputs, targets in _probe(model, samples, seed):
        batches += 1
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(task.loss(model(inputs), targets))
        for name, parameter in named:
            if parameter.grad is not None:
                change = (parameter.detach() * parameter.grad).abs().cpu()
                found[name] = found[name] + change
    model.zero_grad(set_to_none=True)
    return sums_by_unit({name: total / batches for name, total in found.items()}, widths)


def activation_scores(
    model: nn.Module, widths: Widths, samples: Samples, seed: int
) -> dict[str, Tensor]:
    """The mean |activation| of each unit, as the layers that read it get it (after activation
    functions and norms). A group that no known layer reads has no score."""
    model.eval()
    meters = [
        _Meter(group.name, group.units, slot, kind, module)
        for group in widths.groups
        for slot in group.slots
        if (module := _layer_of(model, slot)) is not None
        and (kind := layer_kind(module)) is not None
        and kind.reads == slot.dim
    ]
    with ExitStack() as hooks, torch.no_grad():
        for meter in meters:
            handle = meter.module.register_forward_pre_hook(meter.read)
            hooks.callback(handle.remove)
        for inputs, _ in _probe(model, samples, seed):
            model(inputs)
    found: defaultdict[str, list[Tensor]] = defaultdict(list)
    for meter in meters:
        if meter.count:
            found[meter.group].append(meter.mean())
    return {name: torch.stack(means).mean(0) for name, means in found.items()}


class _Meter:
    """Adds up what one layer reads of a group's units."""

    def __init__(
        self, group: str, units: int, slot: Slot, kind: LayerKind, module: nn.Module
    ) -> None:
        self.group = group
        self.module = module
        self.count = 0
        self._units, self._slot, self._kind = units, slot, kind
        self._sum = torch.zeros(())

    def read(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A hook: called before the layer."""
        read = inputs[0].detach().abs().movedim(self._kind.features, 0).flatten(1)
        self._sum = self._sum + read.double().sum(1).cpu()
        self.count += read.shape[1]

    def mean(self) -> Tensor:
        """float64 (units,)."""
        per_unit = len(self._slot.offsets) * self._slot.block
        return by_unit(self._sum / self.count, self._slot, self._units) / per_unit


def _layer_of(model: nn.Module, slot: Slot) -> nn.Module | None:
    """The module whose weight the slot lies in."""
    path, _, name = slot.tensor.rpartition(".")
    return model.get_submodule(path) if name == "weight" else None


def _probe(model: nn.Module, samples: Samples, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A few batches of the data, drawn from the seed, on the model's device."""
    device = next(model.parameters()).device
    total = num_samples(samples)
    for indices in walk(seed, torch.arange(total), 0, min(total, PROBE_SAMPLES), _BATCH):
        inputs, targets = gather(samples, indices)
        yield inputs.to(device), targets.to(device)
