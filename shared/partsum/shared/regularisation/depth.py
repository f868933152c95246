"""Stochastic depth: residual branches that are left out at random in training.

Huang et al. 2016 (1603.09382). A branch that stays is divided by the probability that it does, so
that its expectation is the branch itself, and a model in evaluation is the model as it was written.
Exact is that for each branch given what it reads; the whole network is not linear, and its
expectation another one.

The whole branch is computed and then multiplied by zero. To leave the work out would save time,
but ranks of a hand-off that draw differently have to walk through the same modules (ZeRO-3 waits
for all of them), and so would a branch's parameters be without gradients now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from partsum.shared.errors import PartsumError
from partsum.shared.gates import find_gates

Schedule = Literal["linear", "constant"]
"""How survival falls with depth: from near 1 to the last branch's, or it is everywhere the same."""


def survivals(branches: int, survival: float, schedule: Schedule) -> list[float]:
    """Each branch's probability to stay, in order of depth; linear: 1 - l / L * (1 - survival)."""
    if schedule == "constant":
        return [survival] * branches
    return [1 - depth / branches * (1 - survival) for depth in range(1, branches + 1)]


def with_stochastic_depth(
    model: nn.Module,
    survival: float | Sequence[float],
    schedule: Schedule = "linear",
    branches: Sequence[str] | None = None,
) -> nn.Module:
    """Let a model's residual branches drop out in training, sample by sample; in place, returned.

    Names and parameters stay. Random numbers come from torch's generator on the CPU, one for each
    sample, as dropout's do there: whatever seeds those repeats these, on any device.

    Args:
        model: residual branches are found by `partsum.shared.gates`.
        survival: the last branch's probability to stay, in (0, 1]; or every branch's, in order.
        schedule: how the others follow from it; without meaning where each one's is given.
        branches: paths of the modules whose outputs are the branches, where no rule finds them.
            The first dimension of an output (or of a tuple's first) is samples.

    Raises:
        ValueError: a probability that is none, or as many as there are no branches.
        PartsumError: there are no branches.
    """
    paths = list(branches or (gate.skips[-1].path for gate in find_gates(model)))
    if not paths:
        raise PartsumError(
            f"no residual branches were found in {type(model).__name__}, so none can be left out "
            "at random. Remove regularisation.survival; or let the model say its branches with a "
            "method structure_gates() (docs/structures.md)"
        )
    each = (
        survivals(len(paths), survival, schedule)
        if isinstance(survival, int | float)
        else list(survival)
    )
    if len(each) != len(paths):
        raise ValueError(f"{len(each)} survival probabilities, but {len(paths)} branches: {paths}")
    for path, probability in zip(paths, each, strict=True):
        if not 0 < probability <= 1:
            raise ValueError(f"survival = {probability:g} of {path} is not in (0, 1]")
        if probability < 1:
            model.get_submodule(path).register_forward_hook(Drop(probability))
    return model


class Drop:
    """A forward hook: zero for some samples in training, and 1 / survival times the rest."""

    def __init__(self, survival: float) -> None:
        self.survival = survival

    def __call__(self, module: nn.Module, inputs: object, output: object) -> object:
        """What the module returns, thinned out."""
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (self._thinned(output[0]), *output[1:])
        assert isinstance(output, Tensor)
        return self._thinned(output)

    def _thinned(self, branch: Tensor) -> Tensor:
        stays = torch.rand(len(branch), device="cpu") < self.survival
        factor = stays.to(branch.dtype) / self.survival
        return branch * factor.view(-1, *[1] * (branch.dim() - 1)).to(branch.device)
