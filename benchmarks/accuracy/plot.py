"""Accuracy or loss against simulated time, modelled time and bytes, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.curves import AXES, Axis, Comparison, Curve

_LABELS = {
    "simulated": "T: passes of the whole model over all data, by FLOPs",
    "1gbit": "seconds: measured steps, and bytes at 1 Gbit/s",
    "bytes": "MB sent and received by a node",
}
_STRONG = ("parts", "dp_small", "dp_tiny", "dp_large")
_DPI = 110
_COLORS = 10  # that matplotlib has of its own; then lines are broken


def draw(comparisons: Sequence[tuple[Comparison, str]], path: Path) -> None:
    """Write a PNG: a row for each task with what it is compared by; means over seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [axis for axis in AXES if axis.name in _LABELS]
    figure, rows = pyplot.subplots(
        len(comparisons),
        len(shown),
        figsize=(5.4 * len(shown) + 2.6, 4.4 * len(comparisons)),
        squeeze=False,
        layout="constrained",
    )
    for (compared, by), row in zip(comparisons, rows, strict=True):
        for axis, place in zip(shown, row, strict=True):
            _panel(place, compared, by, axis)
        handles, labels = row[0].get_legend_handles_labels()
        row[-1].legend(handles, labels, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8.5)
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def _panel(place: Any, compared: Comparison, by: str, axis: Axis) -> None:
    for number, curve in enumerate(compared.curves):
        costs, values = _points(compared, curve, by, axis)
        strong = curve.name in _STRONG
        place.plot(
            costs,
            values,
            color=f"C{number % _COLORS}",
            linestyle="-" if number < _COLORS else "--",
            marker="o" if strong else ".",
            markersize=4,
            linewidth=2.2 if strong else 1.0,
            zorder=3 if strong else 2,
            label=curve.title,
        )
    target = compared.target() * (100 if by == "accuracy" else -1)
    place.axhline(target, color="black", linewidth=0.8, linestyle=":")
    place.set_title(f"{compared.load.name}, T = {compared.load.budget:g}", fontsize=10)
    place.set_xlabel(_LABELS[axis.name], fontsize=9)
    place.set_ylabel("accuracy, %" if by == "accuracy" else "validation loss", fontsize=9)
    if axis.name == "simulated":
        place.set_xlim(0, 1.3 * compared.load.budget)  # a hand-off on one host goes on for longer
    else:
        place.set_xscale("log")
    place.set_ylim(*sorted(_limits(compared, by)))
    place.grid(alpha=0.3)


def _points(
    compared: Comparison, curve: Curve, by: str, axis: Axis
) -> tuple[list[float], list[float]]:
    """Costs (bytes in MB) and the axis's values: accuracies in %, or losses."""
    scale = 1e-6 if axis.name == "bytes" else 1.0
    factor = 100.0 if by == "accuracy" else -1.0
    costs = [scale * cost for cost in compared.costs(curve, axis)]
    return costs, [factor * score for score in curve.scores()]


def _limits(compared: Comparison, by: str) -> tuple[float, float]:
    """From a little beyond the best to well below the target, where all methods look alike."""
    factor = 100.0 if by == "accuracy" else -1.0
    best = factor * max(max(curve.scores()) for curve in compared.curves)
    target = factor * compared.target()
    rise = best - target
    return target - 1.5 * rise, best + 0.1 * rise
