"""What a run leaves behind as numbers: ``summary.json``, documented in docs/summary.md.

All seconds that are a point in time count from the start of the run. What was not measured is
null: JSON knows no NaN.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import Field, ValidationError

from partsum.coordinator.ranges import Ranges
from partsum.coordinator.summary_record import Measured
from partsum.coordinator.summary_record import Record as Record
from partsum.coordinator.summary_structures import SearchSummary
from partsum.shared.config import RunConfig
from partsum.shared.errors import StateError
from partsum.shared.files import sync_folder


class PhaseSummary(Record):
    """One phase of the run."""

    name: Literal["parts", "cotrain", "handoff"]
    """parts: rounds of nodes by themselves; cotrain: rounds in a gang; handoff: DeepSpeed."""
    rounds: int
    """Rounds committed in it; 0 for a hand-off on the coordinator's host."""
    accuracy: Measured
    """Of the base on validation data at the phase's end, a share in [0, 1]."""
    loss: Measured
    """Of the base on validation data at the phase's end."""
    wall_seconds: float
    """How long it took, from its first action to its last, breaks included."""
    bytes_sent: int
    """From the coordinator to nodes."""
    bytes_received: int
    """From nodes to the coordinator."""
    start_seconds: float = 0.0
    """When it began."""
    start_accuracy: Measured = None
    """Of the base before it, where that was evaluated."""
    peak_memory_bytes: int | None = None
    """The most that one training process of it held: a node's worker, or a rank of DeepSpeed."""


class TimelineSummary(Record):
    """A stretch of time in which a node was in one state."""

    round: int
    """The round that it served; 0 where none."""
    part: int
    """The part that it worked on; -1 where none."""
    state: Literal["loading", "idle", "receiving", "training", "sending", "gone", "benched"]
    """The node's state."""
    start_seconds: float
    """When it entered the state."""
    end_seconds: float
    """When it left the state, or the run ended."""


class NodeSummary(Record):
    """One node over the whole run."""

    name: str
    """Its name, unique in the run."""
    device: str
    """What it trained on."""
    samples_per_second: Measured
    """Mean training speed over its updates."""
    updates: int
    """Updates of it that were merged."""
    bytes_sent: int
    """From the coordinator to it."""
    bytes_received: int
    """From it to the coordinator."""
    peak_memory_bytes: int | None
    """The most that its worker held on its device."""
    timeline: tuple[TimelineSummary, ...] = ()
    """Its states in order of time."""


class StageSeconds(Record):
    """Where a round's time went. Nodes overlap, so stages need not add up to the round."""

    plan: Measured = None
    """Deciding who trains which part."""
    send: Measured = None
    """The longest delivery of an assignment."""
    train: Measured = None
    """The longest training."""
    receive: Measured = None
    """The longest delivery of an update."""
    merge: Measured = None
    """Updates into the base, on disk."""
    evaluate: Measured = None
    """The base on validation data."""


class RefusalSummary(Record):
    """An update that was not merged."""

    node: str
    """Who sent it."""
    part: int
    """Which part it was; -1 where that is not known."""
    kind: str
    """Why, as the metric's label: shape, dtype, missing, extra, not_finite, base, samples, ..."""
    reason: str
    """Why, in a sentence."""


class RoundSummary(Record):
    """One committed round."""

    round: int
    """Its number, from 1."""
    phase: Literal["parts", "cotrain", "handoff"] = "parts"
    """The phase that it belongs to."""
    accuracy: Measured
    """Of the merged base on validation data; null: not evaluated in this round."""
    loss: Measured
    """Of the merged base on validation data; null: not evaluated in this round."""
    part_losses: tuple[Measured, ...]
    """Each part's mean training loss, by part; null: missing."""
    missing_parts: tuple[int, ...] = ()
    """Parts that were not in when the round closed; the base kept their old values."""
    refused: tuple[RefusalSummary, ...] = ()
    """Updates that were refused while it was open."""
    reason: str = ""
    """Why it closed as it did, where that is worth a sentence."""
    stage_seconds: StageSeconds = StageSeconds()
    """Where its time went."""
    closed_seconds: float
    """When it was committed."""


class RankingSummary(Record):
    """How one width group was ranked, with planner relevance."""

    group: str
    """The width group."""
    units: int
    """How many units it has."""
    shared: int
    """How many of them, the strongest, every part holds."""
    strongest: float
    """The highest score of a unit."""
    weakest: float
    """The lowest score of a unit."""
    sparse_share: Measured
    """Share of its weights whose log alpha is above 3: noise; null: the score was not ard."""


class HandoffPoint(Record):
    """The hand-off at one step."""

    step: int
    """Optimizer steps done."""
    seconds: float
    """When that was."""
    loss: Measured
    """Training loss, the mean since the point before."""
    validation_loss: Measured = None
    """On validation data; null: not evaluated at this step."""
    accuracy: Measured = None
    """On validation data; null: not evaluated at this step."""


class IncidentSummary(Record):
    """Something that happened beside the plan."""

    seconds: float
    """When."""
    kind: str
    """gone, failed, benched, partial, moved, refused:KIND, ..."""
    node: str
    """Whose; empty where it is no node's."""
    part: int
    """Of which part; -1 where of none."""
    text: str
    """What, in a sentence."""


class Summary(Record):
    """A run, from its config to its final checkpoint."""

    version: Literal[1] = 1
    """The version of this format."""
    run: str
    """The run's name."""
    task: str
    """package.module:function."""
    config_digest: str
    """xxh3-128 of the config, 32 hex digits: the same digest, the same config."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The whole config, defaults included."""
    seed: int
    """All randomness came from it."""
    started_at: str
    """ISO 8601, UTC."""
    ended_at: str
    """ISO 8601, UTC."""
    state: Literal["finished", "stopped", "failed"]
    """How it ended."""
    reason: str = ""
    """Why it ended, in a sentence."""
    wall_seconds: float
    """From the start of the run to its end, without the breaks in which nobody served it."""
    phases: tuple[PhaseSummary, ...] = ()
    """What it went through, in order."""
    rounds: tuple[RoundSummary, ...] = ()
    """The committed rounds, in order."""
    handoff: tuple[HandoffPoint, ...] = ()
    """The hand-off's curve, in order."""
    nodes: tuple[NodeSummary, ...] = ()
    """Every node that took part."""
    incidents: tuple[IncidentSummary, ...] = ()
    """What happened beside the plan, in order of time; of very many the newest."""
    base_parameters: int
    """Parameters of the base."""
    part_parameters: tuple[int, ...] = ()
    """Parameters of each part."""
    part_fractions: tuple[float, ...] = ()
    """Each part's share of the width."""
    group_units: dict[str, int] = Field(default_factory=dict)
    """Each width group's number of units."""
    parts: tuple[dict[str, Ranges], ...] = ()
    """For each part, its units of each width group, in the last round. A group that is not named
    is kept whole."""
    gates_off: tuple[str, ...] = ()
    """Gates that are off in the final model: the branches that it lacks."""
    search: SearchSummary | None = None
    """The search over structures; null: there was none."""
    ranking: tuple[RankingSummary, ...] = ()
    """Each hidden width group as it was ranked before the first round; empty: it was not."""
    full_model_bytes: int | None = None
    """What federated averaging of the full base would have moved in the same rounds, both ways."""
    final_accuracy: Measured = None
    """Of the final model on validation data."""
    final_loss: Measured = None
    """Of the final model on validation data."""
    privacy_epsilon: Measured = None
    """What was spent of each cluster's differential privacy; null: none was asked for."""
    peak_rss_bytes: int
    """The most memory that the coordinator's process held."""
    checkpoint: str | None = None
    """The final weights, relative to the run's folder."""
    report: str | None = None
    """The report, relative to the run's folder."""


def config_digest(config: RunConfig) -> str:
    """The digest of a config that is shown in the summary, 32 hex digits."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json``. Once this returns it is on disk; until then the old one is."""
    text = json.dumps(summary.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_summary(path: Path) -> Summary:
    """Read a ``summary.json``. Raises StateError where there is none, or it is not one."""
    try:
        return Summary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StateError(
            f"cannot read the summary {path}: {error.strerror}. It is written when a run ends"
        ) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in problem["loc"]) or "the file"
        raise StateError(
            f"{path} is not a summary of this version of partsum: {where}: {problem['msg']}"
        ) from error
