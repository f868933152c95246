"""Every metric that the coordinator exports, in one list; docs/metrics.md is its table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from partsum.coordinator.handoff import HandoffProgress
from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.node_figures import NodeFigures
from partsum.coordinator.records import RoundResult
from partsum.coordinator.registry import Node
from partsum.coordinator.run_figures import RunFigures
from partsum.shared.errors import REFUSALS
from partsum.shared.messages import Progress

if TYPE_CHECKING:
    from partsum.coordinator.run import Run

PHASES = ("waiting", "parts", "cotrain", "handoff", "finished", "stopped", "failed")
STAGES = ("plan", "send", "train", "receive", "merge", "evaluate", "commit")
DENIALS = ("unauthenticated", "permission_denied", "resource_exhausted", "aborted")
"""gRPC's words for why the gate turns a call away."""
LOSSES = ("base", "node", "handoff")
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Metrics:
    """The coordinator's metrics in a registry of their own: two runs never share one.

    ``nodes`` and ``run`` are what the page tells of, whenever it is asked for. Every reason that a
    counter can have is there from the start: Prometheus sees no increase in what begins at 1.
    """

    def __init__(self, nodes: Iterable[Node] = (), run: Run | None = None) -> None:
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
        self.progressed = Gauge(
            "partsum_progress_timestamp_seconds",
            "Unix time when the run last got further: a node trained, an update came, a round "
            "closed, the hand-off took steps",
            registry=r,
        )
        r.register(NodeFigures(nodes))
        r.register(RunFigures(nodes, run))
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
        self.not_finite = Counter(
            "partsum_losses_not_finite", "Losses that were nan or infinite", ["of"], registry=r
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
        self._expect()
        memory = Gauge("partsum_resident_memory_bytes", "Memory of the coordinator", registry=r)
        memory.set_function(lambda: float(psutil.Process().memory_info().rss))

    def _expect(self) -> None:
        """Nothing has counted yet, for any reason; and a loss that is not known is not 0."""
        for counter, reasons in (
            (self.refused, REFUSALS),
            (self.denied, DENIALS),
            (self.not_finite, LOSSES),
            (self.stage_seconds, STAGES),
        ):
            for reason in reasons:
                counter.labels(reason)
        for gauge in (self.loss, self.accuracy, self.best, self.handoff_loss):
            gauge.set(math.nan)

    def welcome(self, node: str) -> None:
        """Nothing has counted yet of a node that joins."""
        for counter in (self.updates, self.failures):
            counter.labels(node)

    def got_further(self) -> None:
        """The run is not stalled."""
        self.progressed.set_to_current_time()

    def trains(self, node: str, progress: Progress) -> None:
        """A node tells how far it is."""
        self.got_further()
        self.speed.labels(node).set(progress.samples_per_second)
        self.train_loss.labels(node).set(progress.loss)
        self._count_if_wild("node", progress.loss)

    def took_update(self, node: str) -> None:
        """A node's update is in."""
        self.got_further()
        self.updates.labels(node).inc()

    def closed_round(self, result: RoundResult, seconds: float) -> None:
        """A round is committed, ``seconds`` after it was opened."""
        self.got_further()
        for stage, spent in result.stage_seconds.items():
            self.stage_seconds.labels(stage).observe(spent)
        self.merge_seconds.set(result.stage_seconds.get("merge", 0.0))
        self.round_seconds.observe(seconds)
        if result.diverged:
            self.not_finite.labels("base").inc()
            self.show_scores(None, None)

    def show_scores(self, loss: float | None, accuracy: float | None) -> None:
        """The newest base's, on validation data."""
        self.loss.set(math.nan if loss is None else loss)
        self.accuracy.set(math.nan if accuracy is None else accuracy)

    def show_handoff(self, progress: HandoffProgress) -> None:
        """DeepSpeed tells how far it is. Before the first step there is no training loss."""
        self.got_further()
        self.handoff_step.set(progress.step)
        self.handoff_speed.set(progress.samples_per_second)
        if progress.step:
            self.handoff_loss.set(progress.loss)
            self._count_if_wild("handoff", progress.loss)
        if progress.scores is not None:
            self.show_scores(progress.scores.loss, progress.scores.accuracy)
            self._count_if_wild("handoff", progress.scores.loss)

    def _count_if_wild(self, of: str, loss: float) -> None:
        if not math.isfinite(loss):
            self.not_finite.labels(of).inc()

    def show_search(self, board: Leaderboard | None) -> None:
        """How many structures are left, and how good the best one is."""
        ranked = board.ranked() if board else []
        if board is None or not ranked:
            return
        self.structures.set(len(board.alive))
        last = ranked[0].last
        self.best.set(math.nan if last is None or last.accuracy is None else last.accuracy)

    def set_phase(self, phase: str) -> None:
        """Exactly one phase is 1."""
        _one_of(self.phase, PHASES, phase)


def _one_of(gauge: Gauge, names: Iterable[str], chosen: str) -> None:
    for name in names:
        gauge.labels(name).set(name == chosen)
