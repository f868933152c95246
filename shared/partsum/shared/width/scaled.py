"""Layers that add a hidden axis up, with the constant that mode residual needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaledLinear(nn.Linear):
    """A Linear whose product is multiplied by ``scale`` before the bias is added.

    Put it where a hidden group is added up (a down projection): mode residual sets ``scale`` to
    1/K in the base, so that the base's sum over all units is the mean of the parts' sums.
    """

    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("scale", torch.ones(()))

    def reset_parameters(self) -> None:
        """Standard Linear initialisation; the scale goes back to 1."""
        super().reset_parameters()
        if "scale" in self._buffers:  # the first call comes from nn.Linear.__init__
            self.scale.fill_(1.0)

    def forward(self, input: Tensor) -> Tensor:
        """``scale * (input @ weight.T) + bias``."""
        product = nn.functional.linear(input, self.weight) * self.scale
        return product if self.bias is None else product + self.bias


class ScaledConv2d(nn.Conv2d):
    """A Conv2d whose sum is multiplied by ``scale`` before the bias is added, as ScaledLinear's.

    Needed only where no norm follows at once: a norm divides by the spread of what it is given,
    and a constant factor is lost in it.
    """

    scale: Tensor

    def reset_parameters(self) -> None:
        """Standard Conv2d initialisation; the scale goes back to 1."""
        super().reset_parameters()
        if "scale" in self._buffers:
            self.scale.fill_(1.0)
        else:  # the first call comes from nn.Conv2d.__init__
            self.register_buffer("scale", torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:
        """``scale * (weight conv input) + bias``."""
        summed = self._conv_forward(input, self.weight, None) * self.scale
        return summed if self.bias is None else summed + self.bias[:, None, None]
