"""Every metric that the coordinator exports, in one list; docs/metrics.md is its table."""

from __future__ import annotations

import math
from collections.abc import Iterable

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from partsum.coordinator.handoff import HandoffProgress
from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.node_figures import NodeFigures
from partsum.coordinator.registry import Node

PHASES = ("waiting", "parts", "cotrain", "handoff", "finished", "stopped", "failed")
STAGES = ("plan", "send", "train", "receive", "merge", "evaluate", "commit")
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Metrics:
    """The coordinator's metrics in a registry of their own: two runs never share one.

    ``nodes`` are those that the page tells of, whenever it is asked for.
    """

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.phase = Gauge(
            "partsum_phase", "1 for the phase that the run is in", ["phase"], registry=r
        )
        self.round = Gauge("partsum_round", "Rounds committed", registry=r)
        self.rounds = Gauge("partsum_rounds_planned", "Rounds that the config asks for", registry=r)
        self.parts_in = Gauge("partsum_round_updates", "Updates in, of the open round", registry=r)
        self.stage_seconds = Histogram(
            "partsum_round_stage_seconds",
            "Seconds of a round by stage; send, train and receive are the slowest node's",
            ["stage"],
            buckets=_SECONDS,
            registry=r,
        )
        self.round_seconds = Histogram(
            "partsum_round_seconds", "Seconds of a whole round", buckets=_SECONDS, registry=r
        )
        r.register(NodeFigures(nodes))
        self.speed = Gauge(
            "partsum_samples_per_second", "Training speed, as last reported", ["node"], registry=r
        )
        self.train_loss = Gauge(
            "partsum_train_loss", "Training loss, last reported", ["node"], registry=r
        )
        self.loss = Gauge("partsum_loss", "Loss of the base on validation data", registry=r)
        self.accuracy = Gauge("partsum_accuracy", "Headline metric on validation data", registry=r)
        self.structures = Gauge(
            "partsum_structures", "Structures in the newest round of a search", registry=r
        )
        self.best = Gauge(
            "partsum_structure_best",
            "Headline metric of the search's best structure, on what structures are ranked on",
            registry=r,
        )
        self.updates = Counter("partsum_updates", "Updates accepted", ["node"], registry=r)
        self.refused = Counter("partsum_updates_refused", "Updates refused", ["reason"], registry=r)
        self.denied = Counter(
            "partsum_calls_denied", "Calls turned away at the gate", ["reason"], registry=r
        )
        self.failures = Counter(
            "partsum_assignments_failed", "Assignments failed", ["node"], registry=r
        )
        self.partial = Counter(
            "partsum_rounds_partial", "Rounds closed with a part missing", registry=r
        )
        self.epsilon = Gauge(
            "partsum_privacy_epsilon",
            "Epsilon spent of each cluster's differential privacy; 0 where none is asked for",
            registry=r,
        )
        self.merge_seconds = Gauge("partsum_merge_seconds", "Seconds of the last merge", registry=r)
        self.handoff_step = Gauge("partsum_handoff_step", "Steps done by DeepSpeed", registry=r)
        self.handoff_loss = Gauge(
            "partsum_handoff_loss", "Training loss of the hand-off", registry=r
        )
        self.handoff_speed = Gauge(
            "partsum_handoff_samples_per_second", "Training speed of the hand-off", registry=r
        )
        memory = Gauge("partsum_resident_memory_bytes", "Memory of the coordinator", registry=r)
        memory.set_function(lambda: float(psutil.Process().memory_info().rss))

    def show_search(self, board: Leaderboard | None) -> None:
        """How many structures are left, and how good the best one is."""
        ranked = board.ranked() if board else []
        if board is None or not ranked:
            return
        self.structures.set(len(board.alive))
        last = ranked[0].last
        self.best.set(math.nan if last is None or last.accuracy is None else last.accuracy)

    def show_handoff(self, progress: HandoffProgress) -> None:
        """Where DeepSpeed is."""
        self.handoff_step.set(progress.step)
        self.handoff_loss.set(progress.loss)
        self.handoff_speed.set(progress.samples_per_second)
        if progress.scores is not None:
            self.loss.set(progress.scores.loss)
            self.accuracy.set(progress.scores.accuracy)

    def set_phase(self, phase: str) -> None:
        """Exactly one phase is 1."""
        _one_of(self.phase, PHASES, phase)


def _one_of(gauge: Gauge, names: Iterable[str], chosen: str) -> None:
    for name in names:
        gauge.labels(name).set(name == chosen)
