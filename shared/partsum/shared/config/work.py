"""What a run does: its task and data, its parts, how they are trained, and the hand-off."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from partsum.shared.config.section import Betas, Fraction, NotNegative, Positive, Section
from partsum.shared.limits import BEAT_SECONDS


class TaskConfig(Section):
    """What is trained."""

    name: str = "partsum.shared.tasks:digits"
    """The task, as package.module:function. Nodes must have the same one installed."""
    options: dict[str, int | float | str | bool | list[int]] = Field(default_factory=dict)
    """Keyword arguments of the task function."""


class DataConfig(Section):
    """Which samples each part sees in the parts phase."""

    clusters: Literal["iid", "labels", "kmeans", "natural"] = "iid"
    """iid: random; labels: Dirichlet label skew; kmeans: balanced k-means; natural: by key."""
    label_alpha: Annotated[float, Field(gt=0)] = 0.3
    """Dirichlet concentration of `labels`: small is skewed, large is iid."""
    features: Literal["raw", "pca", "task"] = "pca"
    """What `kmeans` looks at: raw inputs, their first 32 principal components, or the task's own
    features."""
    stream: bool = False
    """Send a cluster's samples to nodes that have no copy of the data set."""


class PartsConfig(Section):
    """How the base is cut, and the rounds of the parts phase."""

    planner: Literal["complement", "relevance", "full", "structures", "study"] = "complement"
    """complement: disjoint parts that cover the width; relevance: parts that share the strongest
    units, or each get their share of them, see [relevance]; full: federated averaging of the
    base; structures: each part is another structure of the base, and the best is searched for,
    see [structures]; study: the models of [study], which nobody merges (`partsum study` sets
    it)."""
    mode: Literal["block", "residual", "copies"] = "block"
    """block: slice every width axis, once and for all; residual: slice hidden axes, re-drawn each
    round; copies: slice as in block, but all nodes train the first slice on their own data and
    average it each round, and the base is made of copies of it, which part in the hand-off."""
    count: Positive = 4
    """How many parts. Fewer nodes than parts take several each, one after the other. With planner
    = "structures" it counts clusters and the nodes to wait for; there are as many parts as
    structures."""
    fractions: Literal["equal", "measured"] | list[Fraction] = "equal"
    """Each part's share of the width: equal, by each node's measured speed and memory, or a list
    that adds up to 1."""
    rounds: Annotated[int, Field(ge=0)] = 4
    """Rounds of the parts phase; 0 goes straight to the hand-off."""
    local_epochs: NotNegative = 1.0
    """Passes over a part's cluster in each round; fractions of a pass are fine."""
    aggregate: Literal["weights", "gradients"] = "weights"
    """weights: merge what nodes trained; gradients: merge mean gradients, step on the
    coordinator."""
    moments: Literal["local", "travel"] = "local"
    """Mode block and structures: AdamW's moments stay on the node that trains the part (a part that
    moves to another node begins with none), or travel with it: three times the bytes, and any node
    goes on exactly where another was. In mode copies they stay; elsewhere each round begins with
    none."""
    gradient_batches: Positive = 8
    """With `aggregate = "gradients"`: batches whose mean gradient makes one update."""
    evaluate_every: Annotated[int, Field(ge=0)] = 1
    """Evaluate the merged base after each n-th round; 0 only after the last."""

    @model_validator(mode="after")
    def _fits_together(self) -> PartsConfig:
        if isinstance(self.fractions, list):
            if len(self.fractions) != self.count:
                raise ValueError(
                    f"fractions has {len(self.fractions)} entries, but count is {self.count}"
                )
            if abs(sum(self.fractions) - 1) > 1e-6:
                raise ValueError(
                    f"fractions add up to {sum(self.fractions):g}; complementary parts must keep "
                    "the whole width between them, so they have to add up to 1"
                )
        if self.is_copies and self.fractions != "equal":
            raise ValueError(
                'mode = "copies" needs fractions = "equal": all of its slices are copies of one'
            )
        if self.is_copies and self.aggregate == "gradients":
            raise ValueError(
                'aggregate = "gradients" needs mode = "residual" or planner = "full": in mode '
                '"copies" the base is made of what nodes trained'
            )
        if self.aggregate == "gradients" and self.is_block:
            raise ValueError(
                'aggregate = "gradients" needs mode = "residual" or planner = "full": in mode '
                '"block" parts share no parameters, so there is no gradient to add up'
            )
        if self.moments == "travel" and not (self.is_block or self.is_search):
            raise ValueError(
                'moments = "travel" needs mode = "block" or planner = "structures": elsewhere a '
                "part is cut anew from the merged base each round, and its moments would be of "
                "other weights"
            )
        if self.moments == "travel" and self.is_search and not self.local_epochs:
            raise ValueError(
                'moments = "travel" needs local_epochs above 0 with planner = "structures": a '
                "structure that nobody trains has no moments"
            )
        return self

    @property
    def is_block(self) -> bool:
        """Whether every width axis is sliced, once and for all, and each slice is a part."""
        return self.planner == "complement" and self.mode == "block"

    @property
    def is_study(self) -> bool:
        """Whether parts are small models of their own, to be compared and not merged."""
        return self.planner == "study"

    @property
    def is_copies(self) -> bool:
        """Whether all parts are one slice, which the base is made of copies of."""
        return self.planner == "complement" and self.mode == "copies"

    @property
    def is_search(self) -> bool:
        """Whether parts are structures, among which the best is searched for."""
        return self.planner == "structures"

    @property
    def is_residual(self) -> bool:
        """Whether hidden axes alone are cut, and their sums are scaled in the base."""
        return self.planner in {"complement", "relevance"} and self.mode == "residual"


class TrainingConfig(Section):
    """How a node trains its part."""

    batch_size: Positive = 64
    """Samples in a batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of the full model; parts scale it by width (`width_lr_power`)."""
    width_lr_power: NotNegative = 0.5
    """Matrices cut on both sides to a fraction f train at learning_rate / f ** power: 0.5 is the
    square-root rule, 1 is muP's, better when the parts phase is short."""
    weight_decay: NotNegative = 0.01
    """AdamW's decoupled weight decay."""
    betas: Betas = (0.9, 0.99)
    """AdamW's decay rates of the first and second moment."""
    gradient_clip: NotNegative = 0.0
    """Clip the gradient's norm to this; 0 does not clip."""
    proximal: NotNegative = 0.0
    """FedProx's mu: pulls a part's weights back to those that its round started from, by mu times
    their distance; 0 does not. Needs planner = "full" or mode = "residual"."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the run's schedule with a linear warm-up; cosine decay to zero after it."""
    parts_share: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = "auto"
    """Where on the schedule the hand-off starts; auto computes it from the FLOPs of both phases."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains under autocast; weights stay float32."""
    ahead: bool = False
    """Nodes go on training while their update travels and is merged: at most one round ahead. In
    mode block nothing else changes; with planner = "full" the others' work arrives a round late."""


class RoundsConfig(Section):
    """When a round starts, and when it stops waiting."""

    min_nodes: Positive | None = None
    """Start once this many nodes are ready; by default as many as there are parts."""
    join_timeout_seconds: NotNegative = 120.0
    """Start with the nodes that are there after this long, if there is at least one."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the parts that must be in before a deadline may close the round."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """A round older than this closes with the updates that are in, if they make a quorum."""
    heartbeat_seconds: Annotated[float, Field(ge=BEAT_SECONDS[0], le=BEAT_SECONDS[1])] = 2.0
    """Nodes say this often that they live; three missed and the node counts as gone."""
    return_seconds: NotNegative | None = None
    """A lost node's part waits this long for it before another may take it; by default two
    heartbeats, or 60 seconds where that node alone has the part's moments, or what encoding it
    lost (`wire.up`), and the run is deterministic. A node that is back in time goes on exactly
    where it was."""
    backup_after: NotNegative = 2.0
    """Once half of a round's parts are in, one that takes longer than this many times their median
    goes to an idle node too, and the first to deliver counts; 0 never. Not in a deterministic run
    whose parts wait for their nodes: the second node would send other bytes."""
    refusals: Positive = 3
    """After this many refused or failed updates in a row a node is quarantined: no more work."""

    @field_validator("backup_after")
    @classmethod
    def _late_is_later_than_usual(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(
                f"{value:g} times the median is sooner than usual; give 1 or more, or 0 for never"
            )
        return value
