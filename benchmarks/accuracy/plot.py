"""Accuracy against simulated time and against bytes, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.methods import Workload
from benchmarks.accuracy.outcomes import Outcome

Drawn = tuple[Workload, Sequence[tuple[str, Sequence[Outcome]]]]
"""A workload, and each method's title and outcomes, one for each seed."""

_SHOWN = 20  # points below the best that the axis reaches down to


def draw(drawn: Sequence[Drawn], path: Path) -> None:
    """Write a PNG: a row for each workload; the mean over seeds, and a point for each seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(drawn), 2, figsize=(15, 4.6 * len(drawn)), squeeze=False, layout="constrained"
    )
    for (load, methods), (by_time, by_bytes) in zip(drawn, axes, strict=True):
        for title, outcomes in methods:
            times, moved, accuracies = _means(outcomes)
            (line,) = by_time.plot(times, accuracies, marker="o", markersize=3, label=title)
            colour = line.get_color()
            sent = [k for k, amount in enumerate(moved) if amount]  # a logarithm has no zero
            reached = [accuracies[k] for k in sent]
            by_bytes.plot([moved[k] for k in sent], reached, marker="o", markersize=3, color=colour)
            for outcome in outcomes:
                end = outcome.curve[-1]
                by_time.plot(end.time, 100 * end.accuracy, "_", color=colour, markersize=9)
        by_time.set_title(f"{load.name}: the same FLOPs for every method (T = {load.budget:g})")
        by_time.set_xlabel("T: passes of the whole model over all data, by FLOPs")
        by_bytes.set_title(f"{load.name}: traffic of a node")
        by_bytes.set_xlabel("MB sent and received, logarithmic")
        by_bytes.set_xscale("log")
        best = max(100 * o.accuracy for _, outcomes in methods for o in outcomes)
        for axis in (by_time, by_bytes):
            axis.set_ylim(best - _SHOWN, best + 1)
            axis.set_ylabel("accuracy, %")
            axis.grid(alpha=0.3)
        handles, labels = by_time.get_legend_handles_labels()
        by_bytes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _means(outcomes: Sequence[Outcome]) -> tuple[list[float], list[float], list[float]]:
    """Times, MB and accuracies in %, each the mean over seeds, which are evaluated alike."""
    marks = list(zip(*(outcome.curve for outcome in outcomes), strict=True))
    count = len(outcomes)
    return (
        [sum(m.time for m in same) / count for same in marks],
        [sum(m.bytes for m in same) / count / 1e6 for same in marks],
        [100 * sum(m.accuracy for m in same) / count for same in marks],
    )
