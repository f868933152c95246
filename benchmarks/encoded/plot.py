"""Accuracy against bytes as a picture: a point for each way to send and fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.encoded.cluster import Outcome
from benchmarks.harness import Spread

_LEAST_POINTS = 3.0  # of an axis: noise must not look like a difference
_MARKS = {"float32": "o", "bfloat16": "s", "int8": "^"}


def draw(planners: Mapping[str, Mapping[str, Sequence[Outcome]]], path: Path) -> None:
    """Write a PNG with a panel for each planner: accuracy over seeds against megabytes moved."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(planners), figsize=(5 * len(planners), 4), squeeze=False, layout="constrained"
    )
    for axis, (name, rows) in zip(axes[0], planners.items(), strict=True):
        for row, outcomes in rows.items():
            moved = fmean(o.sent_bytes + o.fetched_bytes for o in outcomes) / 1e6
            found = Spread.of([100 * o.accuracy for o in outcomes])
            mark = _MARKS[row.split()[0]]
            axis.errorbar([moved], [found.mean], [found.deviation], fmt=mark, label=row, capsize=3)
        low, high = axis.get_ylim()
        margin = max(0.0, (_LEAST_POINTS - (high - low)) / 2)
        axis.set_ylim(low - margin, high + margin)
        axis.set_title(name)
        axis.set_xlabel("MB moved, both ways, all nodes")
        axis.set_xscale("log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=6)
    axes[0][0].set_ylabel("accuracy at the end, %")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
