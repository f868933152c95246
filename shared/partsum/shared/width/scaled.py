"""Layers that add a hidden axis up, with the constant that mode residual needs.

In mode residual the base's sum over all units must be the mean of the parts' sums: the layer that
adds up has a buffer ``scale``, 1 in a part and 1/K in the base (ResIST, 2107.00961).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from partsum.shared.width.groups import WidthGroup
from partsum.shared.width.layers import is_linear, output_dim


class ScaledLinear(nn.Linear):
    """A Linear whose product is multiplied by ``scale`` before the bias is added.

    Put it where a hidden group is added up (a down projection); `with_scales` does the same to a
    model of other layers.
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


def readers(model: nn.Module, groups: Iterable[WidthGroup]) -> Iterator[str]:
    """The paths of the layers that add up one of the hidden groups."""
    seen = set()
    for group in groups:
        for slot in group.slots if group.depth == "hidden" else ():
            path, _, name = slot.tensor.rpartition(".")
            if path not in seen and _adds_up(model.get_submodule(path), name, slot.dim):
                seen.add(path)
                yield path


def _adds_up(module: nn.Module, name: str, dim: int) -> bool:
    if name == "down_proj":
        return _are_experts(module) and dim == 2
    if isinstance(module, _ConvTransposeNd):
        return name == "weight" and dim == 0
    is_affine = is_linear(module) or isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return is_affine and name == "weight" and dim == 1 - output_dim(module)


def _are_experts(module: nn.Module) -> bool:
    """Whether it is a layer of experts whose down projections have no biases."""
    return isinstance(getattr(module, "down_proj", None), nn.Parameter)


def add_scales(
    model: nn.Module, groups: Iterable[WidthGroup], normed: Collection[str] = ()
) -> None:
    """Give each layer that adds up a hidden group a buffer ``scale``, in place.

    Those in ``normed`` need none: a norm follows at once, in which a constant factor is lost.

    Its inputs are multiplied by it on their way in, which multiplies the sum and not the bias;
    names, classes and parameters stay as they are. Experts add up inside, so it is what comes out
    that is multiplied.
    """
    for path in readers(model, groups):
        module = model.get_submodule(path)
        if path in normed or "scale" in module._buffers:
            continue
        weight = next(module.parameters())
        module.register_buffer("scale", torch.ones((), dtype=torch.float32, device=weight.device))
        if _are_experts(module):
            module.register_forward_hook(_scale_output)
        else:
            module.register_forward_pre_hook(_scale_input)


def _scale_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    scale = module.scale
    assert isinstance(scale, Tensor)
    return (inputs[0] * scale.to(inputs[0].dtype), *inputs[1:])


def _scale_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    scale = module.scale
    assert isinstance(scale, Tensor)
    return output * scale.to(output.dtype)


def scales_of(model: nn.Module, groups: Iterable[WidthGroup]) -> tuple[str, ...]:
    """The names of the scales of the layers that add up the hidden groups."""
    paths = (path for path in readers(model, groups))
    return tuple(f"{p}.scale" for p in paths if "scale" in model.get_submodule(p)._buffers)


def reset_scales(model: nn.Module) -> None:
    """Set every scale that `add_scales` gave to 1, where no ``reset_parameters`` does."""
    for module in model.modules():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if _scale_input in hooks or _scale_output in hooks:
            scale = module.scale
            assert isinstance(scale, Tensor)
            scale.fill_(1.0)
