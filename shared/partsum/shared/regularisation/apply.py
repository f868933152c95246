"""What [regularisation] asks, done to a module: the same on a node and in the hand-off."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from partsum.shared.regularisation.depth import Schedule, survivals, with_stochastic_depth
from partsum.shared.regularisation.grouping import with_random_grouping
from partsum.shared.width import Widths
from partsum.shared.width.layers import child


class Wanted(Protocol):
    """The section of a config, or what a node is told of it."""

    @property
    def survival(self) -> float:
        """Of the deepest residual branch; 1: none is ever left out."""
        ...

    @property
    def schedule(self) -> Schedule:
        """How the other branches' follows from it."""
        ...

    @property
    def gates_on(self) -> float:
        """The probability that a partial-sum gate is on; 1: all always are."""
        ...

    @property
    def splits(self) -> int:
        """Slices whose sums the partial-sum gates are between."""
        ...


def regularise(model: nn.Module, wanted: Wanted, whole: Widths | None = None) -> nn.Module:
    """Let gates be random in training as wanted; in place, returned. State dicts stay as they are.

    ``whole`` is what `find_structure` says of the model that this one is a part of: the rules do
    not know a model whose branches have left. What the part lacks of it is not random then, and
    what is left drops out as often as it would in the whole.

    Raises:
        PartsumError: the model has no such gates.
    """
    if wanted.survival < 1:
        _thin_out(model, wanted, whole)
    if wanted.gates_on < 1:
        with_random_grouping(model, wanted.gates_on, wanted.splits, whole)
    return model


def _thin_out(model: nn.Module, wanted: Wanted, whole: Widths | None) -> None:
    if whole is None or not whole.gates:
        with_stochastic_depth(model, wanted.survival, wanted.schedule)
        return
    paths = [gate.skips[-1].path for gate in whole.gates]
    each = zip(paths, survivals(len(paths), wanted.survival, wanted.schedule), strict=True)
    left = {path: survival for path, survival in each if child(model, path) is not None}
    if left:
        with_stochastic_depth(model, list(left.values()), branches=list(left))
