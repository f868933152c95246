"""A run's phases for its summary: what each reached, how long it took, what it moved."""

from __future__ import annotations

from collections.abc import Iterator

from partsum.coordinator.phases import RoundPhase, phase_of
from partsum.coordinator.records import RoundResult
from partsum.coordinator.registry import Registry
from partsum.coordinator.run import Run
from partsum.coordinator.summary import PhaseSummary

Moved = tuple[int, int]  # bytes sent to nodes, and received from them


def phase_summaries(run: Run, registry: Registry, now: float) -> tuple[PhaseSummary, ...]:
    """The phases that have begun."""
    sent: Moved = run.store.fact("parts_bytes") or registry.totals()
    searched: Moved = run.store.fact("search_bytes") or sent
    return (
        *_of_rounds(run, registry, "parts", (0, 0), searched),
        *_of_rounds(run, registry, "cotrain", searched, sent),
        *_handoff(run, registry, sent, now),
    )


def _of_rounds(
    run: Run, registry: Registry, name: RoundPhase, before: Moved, after: Moved
) -> Iterator[PhaseSummary]:
    """A phase of rounds, and what was moved before it and until its end."""
    results = _results(run, name)
    if not results:
        return
    scored = [result for result, _, _ in results if result.loss is not None]
    first = min(opened for _, opened, _ in results)
    yield PhaseSummary(
        name=name,
        rounds=len(results),
        accuracy=scored[-1].accuracy if scored else None,
        loss=scored[-1].loss if scored else None,
        wall_seconds=max(closed for _, _, closed in results) - first,
        bytes_sent=after[0] - before[0],
        bytes_received=after[1] - before[1],
        start_seconds=first,
        peak_memory_bytes=_peak(registry),
    )


def _handoff(run: Run, registry: Registry, before: Moved, now: float) -> Iterator[PhaseSummary]:
    began = run.store.fact("handoff_began")
    if began is None:
        return
    results, after = _results(run, "handoff"), registry.totals()
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
        bytes_sent=after[0] - before[0],
        bytes_received=after[1] - before[1],
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
