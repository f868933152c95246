"""What ``GET /api/status`` answers, and each message of ``/api/events``. Pure.

Seconds that are a point in time count from the start of the run. What was not measured is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from partsum.coordinator.live.glimpse import Glimpse, NodeFigures
from partsum.coordinator.registry import State
from partsum.coordinator.summary_record import Measured, Record
from partsum.shared.messages import NodeStatus, RunStatus

_PARTS = 256  # shown one by one; no screen has room for more


class NodeNow(Record):
    """A node at this moment."""

    name: str
    """Its name, unique in the run."""
    state: State
    """What it is doing; gone: not connected, benched: quarantined."""
    device: str
    """What it trains on; empty: it has not said yet."""
    part: int | None
    """The part that it works on; null: none."""
    progress: float
    """Of its assignment, in [0, 1]."""
    loss: Measured
    """Training loss, as last reported for this assignment."""
    samples_per_second: Measured
    """Training speed, as last reported."""
    bytes_sent: int
    """From the coordinator to it."""
    bytes_received: int
    """From it to the coordinator."""
    updates: int
    """Its updates that were accepted."""
    peak_memory_bytes: int | None
    """The most that its worker held on its device, as of its last update."""


class PartNow(Record):
    """A part of the open round."""

    part: int
    """Its number, from 0."""
    node: str
    """Who has it, or delivered it; empty: nobody yet."""
    state: Literal["waiting", "receiving", "training", "sending", "in"]
    """What is happening to it; in: its update is here."""
    progress: float
    """Of its training, in [0, 1]."""


class StandingNow(Record):
    """A structure's place in a search."""

    structure: str
    """Its gates in order, 1 for on."""
    round: int
    """After which round it was scored last, from 1."""
    accuracy: Measured
    """The headline metric, on the samples that structures are ranked on."""
    loss: Measured
    """The loss on the same samples."""
    parameters: int
    """Of the structure."""
    flops: int
    """Of training it, for a sample."""
    seconds_per_sample: Measured
    """Of training it, measured by its node."""
    on_front: bool
    """Whether none is better and cheaper."""


class StatusNow(Record):
    """The run at this moment."""

    version: Literal[1] = 1
    """The version of this format: fields may be added, and mean the same for ever."""
    run: str
    """The run's name."""
    phase: str
    """Where it is: waiting, parts, cotrain, handoff, finished, stopped, failed; or one to come."""
    reason: str
    """What it waits for and why, or why it ended, in a sentence."""
    round: int
    """Rounds committed."""
    rounds: int
    """Rounds that the config asks for."""
    parts_in: int
    """Updates in, of the open round."""
    parts_count: int
    """Parts of the open round."""
    parts: tuple[PartNow, ...]
    """The open round's parts; of very many the first 256; empty: no round is open."""
    loss: Measured
    """Of the base on validation data."""
    accuracy: Measured
    """Headline metric of the base on validation data, a share in [0, 1] for most tasks."""
    handoff_step: int
    """Optimizer steps that DeepSpeed has done; 0 before the hand-off."""
    handoff_steps: int
    """Optimizer steps that it is to do."""
    elapsed_seconds: float
    """Since the start of the run, without the breaks in which nobody served it."""
    bytes_sent: int
    """From the coordinator to nodes."""
    bytes_received: int
    """From nodes to the coordinator."""
    nodes: tuple[NodeNow, ...]
    """Every node that ever joined, by name."""
    standings: tuple[StandingNow, ...]
    """The first places of a search over structures; empty: there is none."""
    folder: str
    """The run's folder on the coordinator's host."""
    history: str
    """Another text whenever `/api/history` has something new."""


def status_now(
    glimpse: Glimpse, holders: Mapping[int, str], done: Mapping[int, str], history: str
) -> StatusNow:
    """The answer. ``holders`` and ``done``: who has each part of the open round, who sent it."""
    status = glimpse.status
    is_open = status.phase == "parts"
    return StatusNow(
        run=status.run,
        phase=status.phase,
        reason=status.reason,
        round=status.round,
        rounds=status.rounds,
        parts_in=status.parts_in,
        parts_count=status.parts,
        parts=tuple(_parts(status, holders, done)) if is_open else (),
        loss=status.loss,
        accuracy=status.accuracy,
        handoff_step=status.handoff_step,
        handoff_steps=status.handoff_steps,
        elapsed_seconds=status.elapsed_seconds,
        bytes_sent=status.bytes_sent,
        bytes_received=status.bytes_received,
        nodes=tuple(_node(node, glimpse.figures.get(node.name)) for node in status.nodes),
        standings=tuple(StandingNow(**asdict(one)) for one in status.standings),
        folder=status.folder,
        history=history,
    )


def _node(node: NodeStatus, figures: NodeFigures | None) -> NodeNow:
    return NodeNow(
        name=node.name,
        state=node.state,
        device=node.device,
        part=node.part_index if node.part_index >= 0 else None,
        progress=_share(node.progress),
        loss=node.loss,
        samples_per_second=node.samples_per_second or None,
        bytes_sent=node.bytes_sent,
        bytes_received=node.bytes_received,
        updates=figures.updates if figures else 0,
        peak_memory_bytes=(figures.peak_memory_bytes or None) if figures else None,
    )


def _parts(status: RunStatus, holders: Mapping[int, str], done: Mapping[int, str]) -> list[PartNow]:
    at_work: dict[int, NodeStatus] = {}
    for node in status.nodes:
        rival = at_work.get(node.part_index)  # a slow part may be with two nodes
        if node.part_index >= 0 and (rival is None or rival.progress < node.progress):
            at_work[node.part_index] = node
    return [_part(k, at_work.get(k), holders, done) for k in range(min(status.parts, _PARTS))]


def _part(
    part: int, node: NodeStatus | None, holders: Mapping[int, str], done: Mapping[int, str]
) -> PartNow:
    if part in done:
        return PartNow(part=part, node=done[part], state="in", progress=1.0)
    if node is None or node.state not in ("receiving", "training", "sending"):
        return PartNow(part=part, node=holders.get(part, ""), state="waiting", progress=0.0)
    return PartNow(part=part, node=node.name, state=node.state, progress=_share(node.progress))


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0) if value == value else 0.0
