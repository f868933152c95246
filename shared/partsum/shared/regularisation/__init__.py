"""Structural regularisation: gates that are drawn at random in training (docs/experts.md)."""

from partsum.shared.regularisation.apply import regularise
from partsum.shared.regularisation.depth import survivals, with_stochastic_depth
from partsum.shared.regularisation.grouping import with_random_grouping

__all__ = ["regularise", "survivals", "with_random_grouping", "with_stochastic_depth"]
