"""What ``GET /api/history`` answers: the rounds so far, as the journal tells of them."""

from __future__ import annotations

from typing import Literal

from partsum.coordinator.ranges import Ranges
from partsum.coordinator.summary import (
    HandoffPoint,
    IncidentSummary,
    StageSeconds,
    TimelineSummary,
)
from partsum.coordinator.summary_record import Measured, Record
from partsum.coordinator.summary_structures import SearchSummary


class RoundThen(Record):
    """A committed round."""

    round: int
    """Its number, from 1."""
    opened_seconds: float
    """When it was planned."""
    closed_seconds: float
    """When it was committed."""
    loss: Measured
    """Of the merged base on validation data; null: not evaluated in this round."""
    accuracy: Measured
    """Of the merged base on validation data; null: not evaluated in this round."""
    part_loss: Measured
    """Mean of its parts' training losses."""
    updates: int
    """How many updates were merged."""
    missing_parts: tuple[int, ...]
    """Parts that were not in when it closed."""
    stage_seconds: StageSeconds
    """Where its time went."""


class PartThen(Record):
    """A part of the newest round that was planned."""

    part: int
    """Its number, from 0."""
    units: dict[str, Ranges]
    """Units that it keeps of each width group, as [first, one past the last]; a group that is not
    named is kept whole. In more than a hundred pieces, they are told to 1/400 of the group."""
    gates_off: tuple[str, ...]
    """Gates that are off in it."""


class TimelineThen(TimelineSummary):
    """A stretch of time in which a node was in one state."""

    node: str
    """Whose."""


class HistoryThen(Record):
    """The run so far. Very long lists are thinned out, or told from their newest end."""

    version: Literal[1] = 1
    """The version of this format: fields may be added, and mean the same for ever."""
    history: str
    """What `/api/status` calls this state of the history."""
    run: str
    """The run's name."""
    task: str
    """package.module:function."""
    seed: int
    """All randomness comes from it."""
    planner: str
    """How parts are made."""
    started_at: str
    """ISO 8601, UTC."""
    base_parameters: int
    """Parameters of the base."""
    groups: dict[str, int]
    """Each width group's number of units."""
    handoff_planned: bool
    """Whether DeepSpeed trains the base after the parts."""
    rounds_before_handoff: int
    """Rounds of the run's config that are none of the hand-off."""
    opened_seconds: float | None = None
    """When the newest round was planned; null: none was."""
    groups_left_out: int = 0
    """Width groups beyond the first 24, which are not told."""
    parts: tuple[PartThen, ...] = ()
    """Parts of the newest round, of very many the first 64."""
    rounds: tuple[RoundThen, ...] = ()
    """The committed rounds, in order."""
    handoff: tuple[HandoffPoint, ...] = ()
    """The hand-off's curve, in order."""
    handoff_began_seconds: float | None = None
    """When the hand-off began; null: it has not."""
    timeline: tuple[TimelineThen, ...] = ()
    """What nodes did for updates that are in, in order of time."""
    incidents: tuple[IncidentSummary, ...] = ()
    """What happened beside the plan, in order of time."""
    search: SearchSummary | None = None
    """The search over structures; null: there is none."""
    report: str | None = None
    """The report's file on the coordinator's host, once the run has ended."""
