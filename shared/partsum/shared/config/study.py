"""The dropout study: which small models are trained, and how much each is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from partsum.shared.config.section import NotNegative, Section

Share = Annotated[float, Field(gt=0, le=1)]
Selection = Literal["random", "strong", "strong_weak", "weak"]
"""random: whatever the scores; strong: the highest; weak: the lowest; strong_weak: the highest for
half of the places (the larger half where they are odd), and others at random for the rest."""

Start = Literal["scratch", "rewound", "tuned"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class StudyConfig(Section):
    """What `partsum study` sweeps over: every combination is a small model that a node trains."""

    keep: list[Share] = Field(default=[1.0, 0.5, 0.25, 0.125], min_length=1)
    """Shares of each width group's units that are kept; 1 is the whole model, the reference."""
    selections: list[Selection] = Field(
        default=["random", "strong", "strong_weak", "weak"], min_length=1
    )
    """Which units are kept, by their scores in a trained base: any; the highest; the highest for
    half of the places and any others for the rest; the lowest."""
    data: list[Share] = Field(default=[1.0], min_length=1)
    """Shares of the training data that a small model sees, drawn at random."""
    starts: list[Start] = Field(default=["scratch", "tuned"], min_length=1)
    """Where a small model starts: scratch: fresh, so it makes no difference which units are kept;
    tuned: cut from the trained base; rewound: cut from the base as it was before its training."""
    seeds: list[Seed] = Field(default=[0], min_length=1)
    """Each one repeats everything with a base, selections, data and initial weights of its own."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Training of each small model, in passes over all of the training data; one that sees a tenth
    of it makes ten times as many passes over that."""
    base_epochs: NotNegative = 1.0
    """Training of the base that scores and starts are taken from, in the same passes."""
    base: str | None = None
    """A safetensors file to take as the base, in place of training one for each seed; relative to
    run.toml."""
    depth: Literal["hidden", "all"] = "hidden"
    """Which width groups are cut: hidden ones alone, or the residual stream's too."""
    scores: Literal["magnitude", "taylor", "activation"] = "magnitude"
    """How much a unit matters in its base, as in [relevance]: the L2 norm of its weights; |weight x
    gradient| of them; or the mean of what it puts out."""

    @model_validator(mode="after")
    def _nothing_twice(self) -> StudyConfig:
        for name in ("keep", "selections", "data", "starts", "seeds"):
            _check_different(name, getattr(self, name))
        if self.base is not None and "rewound" in self.starts:
            raise ValueError(
                'starts has "rewound", but nobody knows how the base that is given was '
                'initialised; remove base, so that one is trained, or "rewound"'
            )
        return self

    @property
    def trains_bases(self) -> bool:
        """Whether the study begins with training a base for each seed."""
        return self.base is None and self.starts != ["scratch"]


def _check_different(name: str, values: Sequence[object]) -> None:
    twice = [value for k, value in enumerate(values) if value in values[:k]]
    if twice:
        raise ValueError(f"{name} has {twice[0]!r} twice; each would be trained twice")
