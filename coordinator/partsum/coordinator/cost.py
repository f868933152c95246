"""What a part costs, found on the meta device before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from partsum.shared.errors import TaskError
from partsum.shared.part import Part, cut_module, emptied
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
    """The cost of a part of a model on the meta device, for batches like the data set's.

    Raises TaskError where the model does not take the samples, or the loss what comes out.
    """
    model, size = cut_module(shape, widths, part), part_size(shape, widths, part)
    inputs, targets = gather(samples, torch.zeros(1, dtype=torch.int64))
    try:
        flops, kept = _step(model, task, _like(inputs, batch_size), _like(targets, batch_size))
    except (
        Exception
    ):  # it depends on values, as experts' routing does, or is wrong: these will tell
        pair = gather(samples, torch.zeros(2, dtype=torch.int64))  # of one, norms know no spread
        counted = _step_with_values(emptied(model, "cpu"), task, *pair)
        flops, kept = (batch_size * count // 2 for count in counted)
    trained = sum(p.numel() * p.element_size() for p in model.parameters())
    return Cost(
        parameters=size.parameters,
        state_bytes=size.state_bytes,
        flops_per_sample=_TRAIN_FLOPS * flops // batch_size,
        memory_bytes=_ADAMW_COPIES * trained + kept,
    )


def _like(sample: Tensor, batch_size: int) -> Tensor:
    return torch.empty((batch_size, *sample.shape[1:]), dtype=sample.dtype, device="meta")


def _step_with_values(
    model: nn.Module, task: Task, inputs: Tensor, targets: Tensor
) -> tuple[int, int]:
    """The same of real samples on the CPU, all weights being zero."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    try:
        return _step(model, task, inputs, targets)
    except Exception as error:  # it is the user's code
        raise TaskError(
            f"the task's model or loss fails on samples of the data, inputs of shape "
            f"{tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _step(model: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> tuple[int, int]:
    """FLOPs of a forward pass, and the bytes of activations that it keeps."""
    # It imports a compiler: 85 MB and seconds, which a run that counts no FLOPs does without.
    from torch.utils.flop_counter import FlopCounterMode

    saved = _SavedBytes()
    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept)
    guesses = _Guesses()  # type: ignore[no-untyped-call]
    with counter, guesses, hooks:
        task.loss(model(inputs), targets)
    return counter.get_total_flops(), saved.activations(model)


class _Guesses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is
    """Answers a model that asks for a value where there are only shapes: yes, or one.

    Hugging Face's models ask whether a mask is all ones, and save work where it is.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What the operation says, or a guess."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))


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
