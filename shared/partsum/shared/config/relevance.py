"""How units are ranked, and what the ranking is for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from partsum.shared.config.section import NotNegative, Section


class RelevanceConfig(Section):
    """With parts.planner = "relevance": which units are strong, and who trains them
    (docs/relevance.md)."""

    score: Literal["ard", "magnitude", "taylor", "activation"] = "ard"
    """What makes a unit strong. ard: sparse variational dropout leaves it little noise; magnitude:
    the L2 norm of its weights; taylor: |weight x gradient| of its weights; activation: the mean of
    what it puts out. The last two look at 2048 samples of training data."""
    epochs: NotNegative = 1.0
    """Passes over the training data in which the coordinator trains the whole model before the
    first round, with ARD where that is the score; the base goes on from there. 0 ranks the fresh
    base, which says little."""
    shared: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of each hidden group's units, the strongest ones, that every part holds; the others
    are dealt from the strongest to the weakest. 0 deals all, so that each part gets its share."""
    every: Annotated[int, Field(ge=0)] = 0
    """Rank the base's units anew before each n-th round; 0 never. With score = "ard" by taylor,
    which needs no training."""
    kl_warmup: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the ARD training in which the weight of its KL divergence grows to 1 over the number
    of samples."""
