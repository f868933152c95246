"""What [regularisation] asks, done to a module: the same on a node and in the hand-off."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from partsum.shared.regularisation.depth import Schedule, with_stochastic_depth
from partsum.shared.regularisation.grouping import with_random_grouping


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


def regularise(model: nn.Module, wanted: Wanted) -> nn.Module:
    """Let gates be random in training as wanted; in place, returned. State dicts stay as they are.

    Raises:
        PartsumError: the model has no such gates.
    """
    if wanted.survival < 1:
        with_stochastic_depth(model, wanted.survival, wanted.schedule)
    if wanted.gates_on < 1:
        with_random_grouping(model, wanted.gates_on, wanted.splits)
    return model
