"""A multi-layer perceptron. It is a plain chain, so its width groups need no word of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from partsum.shared.width import ScaledLinear


class Mlp(nn.Sequential):
    """Flatten, then a Linear and a ReLU for each width, then a linear head.

    Inputs float (n, ...) with ``inputs`` numbers a sample, outputs logits (n, outputs). The axes
    between layers alternate hidden and stream; a layer that reads a hidden one adds it up, so it
    is a ScaledLinear.

    Raises:
        ValueError: no widths, or one that is not positive.
    """

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int) -> None:
        if not widths or min(widths) < 1:
            raise ValueError(
                f"widths = {list(widths)} must name the width of at least one hidden layer, "
                "each at least 1"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        sizes = [inputs, *widths]
        for number, (fan_in, width) in enumerate(zip(sizes, widths, strict=False), start=1):
            layers[f"linear{number}"] = _linear(number, fan_in, width)
            layers[f"relu{number}"] = nn.ReLU()
        layers["head"] = _linear(len(sizes), sizes[-1], outputs)
        super().__init__(layers)


def _linear(number: int, fan_in: int, fan_out: int) -> nn.Linear:
    """The chain's ``number``-th layer, from 1: every second one reads a hidden axis."""
    return nn.Linear(fan_in, fan_out) if number % 2 else ScaledLinear(fan_in, fan_out)
