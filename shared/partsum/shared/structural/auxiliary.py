"""A loss beside the task's own, put into the gradient where it arises.

No training loop, and no task's loss, need know of it: neither a node's, nor the hand-off's, nor one
of your own. The loss that is reported stays the task's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def add_loss(output: Tensor, loss: Tensor) -> Tensor:
    """``output`` unchanged; once its gradient is computed, so is that of ``loss``, a scalar.

    The gradient is that of (the loop's loss + ``loss``) where the loop's backward pass begins at 1.
    A loop that adds up the gradients of n scaled losses before it steps counts this one n times.
    """
    added: Tensor = _Add.apply(output, loss)  # type: ignore[no-untyped-call]
    return added


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return gradient, torch.ones_like(loss)
