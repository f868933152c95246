"""Gates: a structure that is fixed, and the search for one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from partsum.shared.config.section import Fraction, Positive, Section
from partsum.shared.config.start import StartConfig
from partsum.shared.config.trust import MergeConfig, PrivacyConfig
from partsum.shared.config.wire import WireConfig
from partsum.shared.config.work import PartsConfig


class GatesConfig(Section):
    """A fixed structure: which of the model's gates are off (docs/structures.md)."""

    off: list[str] = Field(default_factory=list)
    """Gates that are off for the whole run: residual ones by the names that `partsum plan`
    lists; GROUP+I/S for the sum after the I-th of S slices that the layer of a width group adds."""


class StructuresConfig(Section):
    """The search of `parts.planner = "structures"`: successive halving over a model's gates."""

    gates: Literal["residual", "partial", "all"] = "residual"
    """Which gates are searched over: residual branches, sums within layers (`splits`), or both."""
    splits: Annotated[int, Field(ge=2)] = 2
    """Slices into which partial-sum gates split a layer's inputs: one gate fewer for each layer."""
    candidates: Annotated[int, Field(ge=1, le=4096)] = 64
    """Structures of the first rung: all of them where there are no more, else a random sample. At
    most 4096, for each is a file of weights on the coordinator and a line of every table; `evolve`
    looks further, around the best."""
    eta: Annotated[float, Field(ge=1)] = 2.0
    """After each rung the best 1/eta of the structures go on; 1 keeps all to the end."""
    rung_rounds: Positive = 1
    """Rounds of a rung."""
    keep: Positive = 4
    """Never fewer structures than this; also how many `merge = "average"` averages."""
    evolve: Literal[0] | Fraction = 0.25
    """Share of a later rung's places for new structures: the best with one gate flipped, and their
    weights. Only where the first rung was a sample."""
    data: Literal["same", "clusters"] = "same"
    """same: every structure trains on all of the training data; clusters: on one cluster of
    [data], dealt in turn."""
    rank: Literal["metric", "loss"] = "metric"
    """What structures are ranked by: the task's headline metric, then the loss; or the loss alone,
    whose early order agreed better with the last one in all that was measured."""
    validation_samples: Annotated[int, Field(ge=0)] = 0
    """Structures are ranked on this many of the first validation samples; 0: on all."""
    merge: Literal["best", "average"] = "best"
    """What the base is at the end: the best structure's weights, or the average of the best `keep`,
    each tensor over those that have it; evaluated, and handed off, as the best structure."""

    @model_validator(mode="after")
    def _fits_together(self) -> StructuresConfig:
        if self.candidates < self.keep:
            raise ValueError(
                f"keep = {self.keep} structures to the end, of {self.candidates} candidates; keep "
                "at most as many as there are"
            )
        return self


def check_structures(
    gates: GatesConfig,
    parts: PartsConfig,
    start: StartConfig,
    wire: WireConfig,
    merge: MergeConfig,
    privacy: PrivacyConfig,
) -> None:
    """Raise ValueError where gates, or a search over them, break what else is asked for."""
    secret = privacy.secure_aggregation or privacy.noise_multiplier > 0
    shared = {
        'parts.aggregate = "weights": there is no gradient of a branch that is skipped': (
            parts.aggregate == "gradients"
        ),
        "no secure aggregation and no noise: what their sums are made of is the whole base": secret,
    }
    if gates.off:
        own = {
            'another wire.down than "int8": nodes do not start from the base, whose change that '
            "would be": wire.down == "int8",
            'parts.planner = "complement" or "full": the others look at units of the whole base': (
                parts.planner in {"relevance", "study"}
            ),
            "no start.models in mode block: each part goes on from a whole model": (
                parts.is_block and bool(start.models)
            ),
        }
        _refuse("gates.off needs", {**shared, **own})
    if parts.planner == "structures":
        more = {
            "gates.off to be empty: the search says which gates are off": bool(gates.off),
            'merge.rule = "mean": structures are ranked, and not merged, until the end': (
                merge.rule != "mean"
            ),
            'wire.up and wire.down = "float32": a structure goes on from its own last weights': (
                wire.up != "float32" or wire.down != "float32"
            ),
        }
        _refuse('parts.planner = "structures" needs', {**shared, **more})


def _refuse(what: str, wrong: dict[str, bool]) -> None:
    for need, refused in wrong.items():
        if refused:
            raise ValueError(f"{what} {need}")
