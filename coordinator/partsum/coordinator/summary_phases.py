"""A run's phases for its summary: what each reached, how long it took, what it moved."""

from __future__ import annotations

from collections.abc import Iterator

from partsum.coordinator.phases import RoundPhase, phase_of
from partsum.coordinator.records import RoundResult
from partsum.coordinator.registry import Registry
from partsum.coordinator.run import Run
from partsum.coordinator.summary import PhaseSummary


def phase_summaries(run: Run, registry: Registry, now: float) -> tuple[PhaseSummary, ...]:
    """The phases that have begun."""
    return (*_parts(run, registry), *_handoff(run, registry, now))


def _parts(run: Run, registry: Registry) -> Iterator[PhaseSummary]:
    results = _results(run, "parts")
    if not results:
        return
    sent, received = run.store.fact("parts_bytes") or registry.totals()
    scored = [result for result, _, _ in results if result.loss is not None]
    first = min(opened for _, opened, _ in results)
    yield PhaseSummary(
        name="parts",
        rounds=len(results),
        accuracy=scored[-1].accuracy if scored else None,
        loss=scored[-1].loss if scored else None,
        wall_seconds=max(closed for _, _, closed in results) - first,
        bytes_sent=sent,
        bytes_received=received,
        start_seconds=first,
        peak_memory_bytes=_peak(registry),
    )


def _handoff(run: Run, registry: Registry, now: float) -> Iterator[PhaseSummary]:
    began = run.store.fact("handoff_began")
    if began is None:
        return
    results = _results(run, "handoff")
    sent, received = run.store.fact("parts_bytes") or registry.totals()
    total_sent, total_received = registry.totals()
    end = run.store.fact("handoff") or {}
    last = {"accuracy": results[-1][0].accuracy, "loss": results[-1][0].loss} if results else {}
    scores = end.get("end") or last
    start = end.get("start") or run.store.fact("handoff_start") or {}
    over_nodes = run.config.handoff.over_nodes
    yield PhaseSummary(
        name="handoff",
        rounds=len(results),
        accuracy=scores.get("accuracy"),
        loss=scores.get("loss"),
        wall_seconds=end.get("ended", now) - began,
        bytes_sent=total_sent - sent,
        bytes_received=total_received - received,
        start_seconds=began,
        start_accuracy=start.get("accuracy"),
        peak_memory_bytes=_peak(registry) if over_nodes else end.get("peak_memory_bytes"),
    )


def _results(run: Run, phase: RoundPhase) -> list[tuple[RoundResult, float, float]]:
    """The phase's committed rounds: result, opened and closed seconds of the run."""
    found = run.store.results().items()
    return [result for round, result in found if phase_of(run.config, round) == phase]


def _peak(registry: Registry) -> int | None:
    """The most that a node's worker held, in any phase."""
    peaks = [node.peak_memory_bytes for node in registry if node.peak_memory_bytes]
    return max(peaks, default=None)
