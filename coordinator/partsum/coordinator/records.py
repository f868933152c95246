"""What the journal holds of a run, as plain frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from partsum.shared.messages import Blob, Delta, Part, Update

if TYPE_CHECKING:
    from partsum.shared.task import Scores


def finite(value: float) -> float | None:
    """Nothing, for a task without a metric or a base that has diverged: the journal is JSON."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class PlannedPart:
    """One part of a round as it is in the journal; an assignment is made from it."""

    part: Part
    seed: int
    start: Blob | None
    cluster: Blob
    first_sample: int
    num_samples: int
    holder: str  # the node that it suits, or ""
    delta: Delta | None = None  # makes the start out of that of the round before


@dataclass(frozen=True)
class HandoffSteps:
    """Which of the hand-off's optimizer steps a round takes, after ``first`` earlier ones."""

    first: int
    count: int
    total: int
    share: float  # where on the schedule the hand-off began
    batch: int  # samples in a step: of a gang together, else of one node
    norm_parts: tuple[Part, ...] = ()  # layer norms keep to their slices; none: they do not
    start_before: str = ""  # digest of the base that the round before began with


@dataclass(frozen=True)
class RoundPlan:
    """A round's parts and where on the schedule it lies."""

    round: int
    base: str  # file name of the base that it starts from
    parts: tuple[PlannedPart, ...]
    progress: tuple[float, float]
    ahead_to: float = 0.0  # where the next round ends there, if nodes may begin it early; 0: no
    needed: int = 0  # updates without which it cannot close, beside the quorum
    handoff: HandoffSteps | None = None  # DeepSpeed trains it


@dataclass(frozen=True)
class RoundResult:
    """What came of a round."""

    base: str  # file name of the new base
    digest: str
    loss: float | None
    accuracy: float | None
    missing: tuple[int, ...]
    stage_seconds: Mapping[str, float]
    diverged: bool = False  # it was evaluated, and its loss is not finite

    @classmethod
    def scored(
        cls, base: str, digest: str, scores: Scores | None, missing: tuple[int, ...]
    ) -> RoundResult:
        """Of a base with these scores, where it was evaluated; its stages are timed elsewhere."""
        loss = finite(scores.loss) if scores else None
        accuracy = finite(scores.accuracy) if scores else None
        diverged = scores is not None and loss is None
        return cls(base, digest, loss, accuracy, missing, {}, diverged)


@dataclass(frozen=True)
class Received:
    """An update in the spool."""

    node: str
    update: Update
    at: float  # seconds of the run


@dataclass(frozen=True)
class Span:
    """A stretch of a node's time: what it did for which part of which round."""

    node: str
    round: int
    part: int
    state: str
    start: float
    end: float
