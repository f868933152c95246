"""Gates that are drawn at random while a model trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from partsum.shared.config.section import Section
from partsum.shared.config.structures import GatesConfig, StructuresConfig
from partsum.shared.config.work import PartsConfig
from partsum.shared.limits import SPLITS


class RegularisationConfig(Section):
    """Random gates in training, on nodes and in the hand-off; docs/experts.md says what it gives.

    Evaluation, and the final model, are the model as it was written.
    """

    survival: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Stochastic depth: the deepest residual branch stays for a sample with this probability, and
    counts for its inverse then; 1 leaves none out."""
    schedule: Literal["linear", "constant"] = "linear"
    """linear: the first branches nearly always stay, as the paper has it; constant: all branches
    stay with the probability `survival`."""
    gates_on: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Random grouping: each partial-sum gate is on with this probability, anew at each step; 1: all
    always are. Evaluation has all on, which is not what training expects on average."""
    splits: Annotated[int, Field(ge=2, le=SPLITS)] = 2
    """Slices of a layer's inputs, between whose sums those gates are."""

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> RegularisationConfig:
        if self.schedule != "linear" and self.survival == 1:
            raise ValueError(
                f'schedule = "{self.schedule}" means nothing while survival is 1; lower it, or '
                "remove schedule"
            )
        if self.splits != 2 and self.gates_on == 1:
            raise ValueError(
                f"splits = {self.splits} means nothing while gates_on is 1; lower it, or remove "
                "splits"
            )
        return self


def check_regularisation(
    regularisation: RegularisationConfig,
    gates: GatesConfig,
    parts: PartsConfig,
    structures: StructuresConfig,
) -> None:
    """Raise ValueError where a gate would be drawn that something else has decided."""
    if regularisation.gates_on == 1:
        return
    searched = parts.planner == "structures" and structures.gates != "residual"
    fixed = [name for name in gates.off if "+" in name]
    if searched or fixed:
        what = (
            f"gates.off names {fixed[0]!r}"
            if fixed
            else f'structures.gates is "{structures.gates}"'
        )
        raise ValueError(
            f"regularisation.gates_on = {regularisation.gates_on:g} draws partial-sum gates at "
            f"random, but {what}: such a gate cannot be both. Remove one of the two"
        )
