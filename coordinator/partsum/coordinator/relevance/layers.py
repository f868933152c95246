"""The layers whose weights are looked at one by one, and how each kind multiplies.

Hugging Face's Conv1D is known by its name: transformers need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from partsum.shared.width.layers import is_hugging_face_conv1d

Product = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(layer, input, weight) -> output without the bias; linear in input and weight."""


@dataclass(frozen=True)
class LayerKind:
    """How a kind of layer multiplies.

    ``reads`` is the dimension of the weight that the input runs along; ``features`` that of the
    input in which its features lie.
    """

    product: Product
    reads: int
    features: int


def layer_kind(module: nn.Module) -> LayerKind | None:
    """What is known of a layer; None for every other module.

    A convolution in groups is not: its weight's second dimension is not its input's channels.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return None
    if isinstance(module, nn.Linear):
        return _LINEAR
    if isinstance(module, nn.Conv2d):
        return _CONV if module.groups == 1 and module.padding_mode == "zeros" else None
    return _TRANSPOSED if is_hugging_face_conv1d(module) else None


def branch_scale(module: nn.Module) -> Tensor | None:
    """The 0-dim buffer ``scale`` by which a layer multiplies its product (see ScaledLinear)."""
    scale = dict(module.named_buffers(recurse=False)).get("scale")
    return scale if scale is not None and scale.dim() == 0 else None


def _linear(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(inputs, weight)


def _conv(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    stride, padding, dilation = module.stride, module.padding, module.dilation
    return functional.conv2d(inputs, weight, None, stride, padding, dilation)


def _transposed(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(inputs, weight)


_LINEAR = LayerKind(_linear, reads=1, features=-1)
_CONV = LayerKind(_conv, reads=1, features=1)
_TRANSPOSED = LayerKind(_transposed, reads=0, features=-1)
