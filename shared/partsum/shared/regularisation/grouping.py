"""Random grouping: layers train as a structure of partial sums that is drawn at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from partsum.shared.errors import PartsumError
from partsum.shared.gates import splittable_groups
from partsum.shared.gates.partial import Layers, SplitLinear, run_groups, sum_groups
from partsum.shared.width import Widths, find_widths
from partsum.shared.width.layers import inputs_of


def with_random_grouping(
    model: nn.Module, on: float, splits: int, whole: Widths | None = None
) -> nn.Module:
    """Let each partial-sum gate be on with a probability, anew at each step; in place, returned.

    Every layer that makes a width group out of one input is split into ``splits`` slices, whose
    ``splits`` - 1 gates are drawn at each forward pass in training. In evaluation all are on: the
    layer is the dense one, to the bit. That is *not* the expectation of what was trained, since the
    activation lies between; docs/experts.md says how far off it is. Names and parameters stay.

    Random numbers come from torch's generator on the CPU, in the order of the width groups.
    ``whole`` is what `find_structure` says of the model that this one is a part of; the part may
    lack all such layers.

    Raises:
        ValueError: ``on`` is no probability, or ``splits`` is below 2.
        PartsumError: no layer lies between two linear ones, or has so many inputs.
    """
    if not 0 <= on <= 1 or splits < 2:
        raise ValueError(f"on = {on:g} must be in [0, 1], and splits = {splits} at least 2")
    wide = [
        layers
        for layers in splittable_groups(model, whole or _widths(model)).values()
        if inputs_of(model.get_submodule(layers.makers[0])) >= splits
    ]
    if not wide and whole is None:
        raise PartsumError(
            f"{type(model).__name__} has no layer whose sum over {splits} slices could be taken in "
            "groups: there is no width group between two linear layers alone (docs/structures.md). "
            "Remove regularisation.gates_on"
        )
    split = [_split(model, layers, splits) for layers in wide]
    model.register_forward_pre_hook(Draw(split, on, splits))
    return model


def _widths(model: nn.Module) -> Widths:
    try:
        return find_widths(model)
    except PartsumError as error:
        raise PartsumError(f"regularisation.gates_on needs width groups: {error}") from error


class RandomSplit(SplitLinear):
    """A layer in the groups that were drawn last; the whole one in evaluation.

    It runs over (..., in) -> (groups, ..., out), of which the layer that reads it adds the groups.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Each group's sum, in order."""
        if self.training and len(self.groups) > 1:
            return super().forward(input)
        whole: Tensor = self._whole[0].forward(input)
        return whole.unsqueeze(0)


def _split(model: nn.Module, layers: Layers, splits: int) -> list[RandomSplit]:
    made = []
    for path in layers.makers:
        parent, _, leaf = path.rpartition(".")
        whole = model.get_submodule(path)
        split = RandomSplit(whole, splits, set())
        split.train(whole.training)
        setattr(model.get_submodule(parent), leaf, split)
        made.append(split)
    model.get_submodule(layers.reader).register_forward_pre_hook(sum_groups, prepend=True)
    return made


class Draw:
    """A hook before the model's forward pass: draws each layer's groups, for a gate's rows too."""

    def __init__(self, layers: Sequence[Sequence[RandomSplit]], on: float, splits: int) -> None:
        self._layers, self._on, self._splits = layers, on, splits

    def __call__(self, module: nn.Module, inputs: object) -> None:
        """Draw, unless the model is evaluated."""
        if not module.training:
            return
        for makers in self._layers:
            drawn = torch.rand(self._splits - 1, device="cpu") >= self._on
            off = {place for place, is_off in enumerate(drawn.tolist(), 1) if is_off}
            for maker in makers:
                maker.groups = tuple(run_groups(inputs_of(maker._whole[0]), self._splits, off))
