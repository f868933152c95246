"""Automatic relevance determination by sparse variational dropout (Molchanov, Ashukha, Vetrov 2017,
1701.05369).

Each weight theta is given a Gaussian N(theta, sigma^2), and a log-uniform prior. Where the data do
not need the weight, alpha = sigma^2 / theta^2 grows without bound: it is all noise, and can go.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from partsum.coordinator.relevance.layers import LayerKind, branch_scale, layer_kind

THRESHOLD = 3.0
"""Weights with log alpha above it are noise: dropped with a rate of 95 % and more (the paper's)."""

_START = -8.0  # log sigma^2 at first; -10 in the paper's code, whose training is far longer
_BOUND = 8.0  # of log alpha, either way: beyond it nothing changes any more
_SMALLEST = 1e-8  # a square that is added to others before a root or a logarithm
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695  # of the paper's approximation of the KL divergence


class Ard:
    """ARD on a model: the layers that have it, and what it says of their weights.

    Made by `with_ard`. A layer that its model never calls (some only lend their weight to a fused
    function) gets no noise, so nothing can be said of its weights, and it does not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._noises = {
            path: _Noise(module, kind)
            for path, module in model.named_modules()
            if (kind := layer_kind(module)) is not None and _weight(module).requires_grad
        }

    @property
    def spreads(self) -> list[nn.Parameter]:
        """The parameters that ARD has added to the model."""
        return [noise.log_sigma2 for noise in self._noises.values()]

    def log_alphas(self) -> dict[str, Tensor]:
        """By the name of its weight, each layer's log alpha, in the weight's shape."""
        return {
            f"{path}.weight" if path else "weight": log_alpha(noise.weight, noise.log_sigma2)
            for path, noise in self._noises.items()
            if noise.was_called
        }

    def divergence(self) -> Tensor:
        """The KL divergence of all weights from their prior, 0-dim; at its least 0."""
        terms = [kl_divergence(value) for value in self.log_alphas().values()]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def remove(self) -> None:
        """Take it off: the model is what it was, with the weights that it has now."""
        for noise in self._noises.values():
            noise.remove()
        self._noises = {}


class _Noise:
    """One layer's log sigma^2, and the hook that adds its noise to what the layer puts out."""

    def __init__(self, module: nn.Module, kind: LayerKind) -> None:
        self.module = module
        self.weight = _weight(module)
        self.log_sigma2 = nn.Parameter(torch.full_like(self.weight, _START))
        self.was_called = False
        self._kind = kind
        module.register_parameter("log_sigma2", self.log_sigma2)
        self._handle: RemovableHandle = module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Local reparametrisation: draw the output, not the weights; its variance is what the
        squared inputs make of the weights' variances (Kingma et al. 2015, 1506.02557)."""
        self.was_called = True
        if not module.training:
            return None
        with torch.autocast(output.device.type, enabled=False):
            sigma2 = self.log_sigma2.float().exp()
            variance = self._kind.product(module, inputs[0].float().square(), sigma2)
            scale = branch_scale(module)
            deviation = (variance + _SMALLEST).sqrt() * (1.0 if scale is None else scale)
            noise = deviation * torch.randn_like(deviation)
        return output + noise.to(output.dtype)

    def remove(self) -> None:
        self._handle.remove()
        del self.module._parameters["log_sigma2"]


def with_ard(model: nn.Module) -> Ard:
    """Put ARD on all Linear, Conv2d and Conv1D layers of a model, in place.

    The layers stay what they are, and their parameters keep their names; each gets one more,
    ``log_sigma2``, in its weight's shape. Noise is added in training mode only, from torch's
    generator. A weight that is not trained is left alone.

    Raises:
        ValueError: the model has it already.
    """
    if any(name.endswith("log_sigma2") for name, _ in model.named_parameters()):
        raise ValueError("the model has ARD on it already; take it off by without_ard first")
    return Ard(model)


def without_ard(ard: Ard, threshold: float | None = None) -> nn.Module:
    """Take ARD off its model, and return that; with a threshold, weights above it become 0."""
    if threshold is not None:
        keep = {name: values <= threshold for name, values in ard.log_alphas().items()}
        mask_weights(ard.model, keep)
    ard.remove()
    return ard.model


def mask_weights(model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Set to zero, in place, what is not kept: parameter's name -> bool tensor of its shape."""
    with torch.no_grad():
        for name, kept in keep.items():
            model.get_parameter(name).mul_(kept)


def log_alpha(weight: Tensor, log_sigma2: Tensor) -> Tensor:
    """log sigma^2 - log theta^2 of each weight, within +-8; float32, of the weight's shape."""
    spread = log_sigma2.float() - (weight.float().square() + _SMALLEST).log()
    return spread.clamp(-_BOUND, _BOUND)


def kl_divergence(log_alphas: Tensor) -> Tensor:
    """The sum over weights of the divergence from the log-uniform prior, 0-dim.

    The paper's approximation (its equation 14), without the constant that makes it negative:
    -KL = k1 s(k2 + k3 log alpha) - log(1 + 1/alpha) / 2 - k1, where s is the sigmoid.
    """
    gained = _K1 * torch.sigmoid(-_K2 - _K3 * log_alphas)
    return (gained + 0.5 * functional.softplus(-log_alphas)).sum()


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight
