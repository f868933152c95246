"""A comparison as tables for people, and as figures for programs."""

from __future__ import annotations

import math

from benchmarks.accuracy.curves import AXES, Axis, Comparison, Curve
from benchmarks.accuracy.methods import Contest
from rich.table import Table

_TIMES = [axis for axis in AXES if axis.name != "bytes"]


def outcomes(contest: Contest, compared: Comparison) -> Table:
    """What each method ends with, and its traffic."""
    seeds = sorted({len(curve.runs) for curve in compared.curves})
    title = f"{contest.load.name}, T = {contest.load.budget:g}, {_range(seeds)} seed(s)"
    made = Table(title=title, box=None)
    made.add_column("method")
    for column in ("accuracy %", "loss", "at hand-off", "MB a node", "measured s", "lr", "tried"):
        made.add_column(column, justify="right")
    for curve in compared.curves:
        before = curve.handoff(contest.by)
        tried = ", ".join(f"{rate:g}: {_text(contest, s)}" for rate, s in curve.tried.items())
        made.add_row(
            curve.title,
            curve.last("accuracy").text(2, 100),
            curve.last("loss").text(3),
            _spread(contest, before.mean) if before else "",
            f"{compared.costs(curve, AXES[-1])[-1] / 1e6:,.1f}",
            f"{compared.costs(curve, AXES[1])[-1]:.1f}",
            f"{curve.rate:g}",
            tried,
        )
    return made


def targets(contest: Contest, compared: Comparison) -> Table:
    """What each method spends until the target, and that as a share of the cheapest rival's."""
    title = (
        f"{contest.load.name}: cost of {contest.by} {_text(contest, compared.target())}, "
        "over the cheapest data-parallel training's"
    )
    made = Table(title=title, box=None)
    made.add_column("method")
    for axis in AXES:
        made.add_column(axis.title, justify="right")
    for curve in compared.curves:
        made.add_row(curve.title, *(_cost(compared, curve, axis) for axis in AXES))
    return made


def _cost(compared: Comparison, curve: Curve, axis: Axis) -> str:
    cost, ratio = compared.cost(curve, axis), compared.ratio(curve, axis)
    if math.isinf(cost):
        return "never"
    said = f"{cost / 1e6:.4g} MB" if axis.name == "bytes" else f"{cost:.3g}"
    return f"{said} = {ratio:.2g} x"


def _spread(contest: Contest, value: float) -> str:
    return f"{100 * value:.2f}" if contest.by == "accuracy" else f"{value:.3f}"


def _text(contest: Contest, score: float) -> str:
    """A score (more is better) as what it is of."""
    return f"{100 * score:.2f}" if contest.by == "accuracy" else f"{-score:.3f}"


def _range(values: list[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def figures(contest: Contest, compared: Comparison) -> dict[str, float]:
    """Flat name -> number; what is never reached is left out."""
    task = contest.load.name
    found = {f"{task}/target": abs(compared.target())}
    for curve in compared.curves:
        name = f"{task}/{curve.name}"
        found[f"{name}/seeds"] = len(curve.runs)
        found[f"{name}/learning_rate"] = curve.rate
        for field in ("accuracy", "loss"):
            spread = curve.last(field)
            found[f"{name}/{field}"] = spread.mean
            found[f"{name}/{field}_deviation"] = spread.deviation
        for axis in AXES:
            found[f"{name}/whole/{axis.name}"] = compared.costs(curve, axis)[-1]
            found[f"{name}/to_target/{axis.name}"] = compared.cost(curve, axis)
            found |= _ratios(compared, curve, axis, f"{name}/ratio/{axis.name}")
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _ratios(compared: Comparison, curve: Curve, axis: Axis, name: str) -> dict[str, float]:
    """Of the mean curves, and the range over the seeds that all have."""
    common = min(len(other.runs) for other in (curve, *compared.rivals))
    by_seed = [compared.ratio(curve, axis, seed) for seed in range(common)]
    return {
        name: compared.ratio(curve, axis),
        f"{name}_least": min(by_seed),
        f"{name}_most": max(by_seed),
    }
