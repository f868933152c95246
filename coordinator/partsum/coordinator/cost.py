"""What a part costs, found on the meta device before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partsum.shared.part import Part, cut_module
from partsum.shared.task import Samples, Task, gather
from partsum.shared.width import Widths

_TRAIN_FLOPS = 3  # forward, gradient by inputs, gradient by weights: the usual estimate
_ADAMW_COPIES = 4  # weights, gradients and two moments


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    parameters: int
    state_bytes: int  # of its state dict: what travels


@dataclass(frozen=True)
class Cost:
    """A model's size and what training it takes."""

    parameters: int
    state_bytes: int  # of its state dict: what travels
    flops_per_sample: int  # forward and backward
    memory_bytes: int  # weights, gradients, AdamW moments and a batch's activations; an estimate


def part_size(shape: nn.Module, widths: Widths, part: Part) -> Size:
    """The size of a part of a model on the meta device."""
    model = cut_module(shape, widths, part)
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        state_bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
    )


def part_cost(
    shape: nn.Module, widths: Widths, part: Part, task: Task, samples: Samples, batch_size: int
) -> Cost:
    """The cost of a part of a model on the meta device, for batches like the data set's."""
    # It imports a compiler: 85 MB and seconds, which a run that counts no FLOPs does without.
    from torch.utils.flop_counter import FlopCounterMode

    model, size = cut_module(shape, widths, part), part_size(shape, widths, part)
    inputs, targets = gather(samples, torch.zeros(1, dtype=torch.int64))
    inputs = torch.empty((batch_size, *inputs.shape[1:]), dtype=inputs.dtype, device="meta")
    targets = torch.empty((batch_size, *targets.shape[1:]), dtype=targets.dtype, device="meta")
    saved = _SavedBytes()
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept):
        task.loss(model(inputs), targets)
    trained = sum(p.numel() * p.element_size() for p in model.parameters())
    return Cost(
        parameters=size.parameters,
        state_bytes=size.state_bytes,
        flops_per_sample=_TRAIN_FLOPS * counter.get_total_flops() // batch_size,
        memory_bytes=_ADAMW_COPIES * trained + saved.activations(model),
    )


class _SavedBytes:
    """Counts what autograd keeps for the backward pass, each tensor once."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that an id is not used twice

    def pack(self, tensor: Tensor) -> Tensor:
        """Note the tensor and hand it back."""
        self._sizes[id(tensor)] = tensor.numel() * tensor.element_size()
        self._kept.append(tensor)
        return tensor

    def activations(self, model: nn.Module) -> int:
        """Bytes kept that are not the model's own parameters."""
        own = {id(parameter) for parameter in model.parameters()}
        return sum(size for key, size in self._sizes.items() if key not in own)


def parts_share(
    part_flops: float, full_flops: float, part_samples: int, handoff_samples: float, nodes: int
) -> float:
    """Where on the schedule the hand-off starts: the parts phase's share of each node's FLOPs.

    The hand-off counts as spread evenly over as many hosts as the parts phase uses.
    """
    parts = part_flops * part_samples
    handoff = full_flops * handoff_samples / max(1, nodes)
    return parts / (parts + handoff) if parts + handoff else 0.0
