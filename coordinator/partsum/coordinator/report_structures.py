"""The report on a search over structures: a table, and score against cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from partsum.coordinator.figures import count_text, loss_text, share_text
from partsum.coordinator.report_svg import (
    Scale,
    drawing,
    element,
    escape,
    label,
    line,
    nice_ticks,
)
from partsum.coordinator.report_tables import folded, table
from partsum.coordinator.summary_structures import SearchSummary, StructureSummary

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 880.0, 96.0, 14.0, 14.0, 230.0


def structures_section(search: SearchSummary | None) -> str:
    """Which structures were tried and how they did; nothing where none were."""
    if search is None:
        return ""
    gates = ", ".join(search.gates)
    note = f"A structure is named by its gates, 1 for on, in this order: {gates}."
    return (
        element("h2", "Structures")
        + element("p", escape(note), class_="note")
        + _pareto(search)
        + _correlations(search)
        + folded(len(search.structures), "structures", _table(search))
    )


def _table(search: SearchSummary) -> str:
    heads = ("structure", "rounds", "accuracy", "loss", "parameters", "MFLOP", "us/sample", "")
    rows = (
        (
            one.bits,
            str(one.rounds),
            share_text(one.accuracy),
            loss_text(one.loss),
            count_text(one.parameters),
            f"{one.flops / 1e6:.3g}",
            f"{1e6 * one.seconds_per_sample:.3g}" if one.seconds_per_sample else "",
            "best for its cost" if one.on_front else f"of {one.parent}" if one.parent else "",
        )
        for one in search.structures
    )
    return table(heads, rows, words=(7,))


def _correlations(search: SearchSummary) -> str:
    known = [(k, value) for k, value in enumerate(search.correlations, 1) if value is not None]
    if not known:
        return ""
    said = ", ".join(f"{value:.2f} after round {k}" for k, value in known)
    text = f"Rank correlation (Spearman) with the last round: {said}."
    return element("p", escape(text), class_="note")


def _pareto(search: SearchSummary) -> str:
    """Score against FLOPs: the newest round's structures, the front among them as a line."""
    newest = max((one.rounds for one in search.structures), default=0)
    present = [one for one in search.structures if one.rounds == newest]
    by_loss = search.by == "loss" or all(one.accuracy is None for one in present)
    scores = {one.bits: one.loss if by_loss else one.accuracy for one in present}
    drawn = [
        _Dot(one, one.flops / 1e6, score)
        for one in present
        if (score := scores[one.bits]) is not None
    ]
    if len(drawn) < 2:
        return ""
    costs, heights = [dot.cost for dot in drawn], [dot.score for dot in drawn]
    aside, up = nice_ticks(min(costs), max(costs), 6), nice_ticks(min(heights), max(heights))
    across = Scale(aside[0], aside[-1], _LEFT, _WIDTH - _RIGHT)
    bottom, top = (_TOP, _BOTTOM) if by_loss else (_BOTTOM, _TOP)  # the better, the higher
    upward = Scale(up[0], up[-1], bottom, top)
    parts = [
        *_axes(across, aside, upward, up, _tick if by_loss else _share_tick),
        _front([dot for dot in drawn if dot.one.on_front], across, upward),
        *(_circle(dot, across, upward) for dot in drawn),
    ]
    what = "Loss" if by_loss else "Accuracy"
    return element("h3", f"{what} against cost") + drawing(
        _WIDTH, _BOTTOM + 38, f"{what} of each structure against the FLOPs of training it", parts
    )


@dataclass(frozen=True)
class _Dot:
    one: StructureSummary
    cost: float  # MFLOP
    score: float


def _share_tick(value: float) -> str:
    return f"{100 * value:.4g} %"


def _tick(value: float) -> str:
    return f"{value:.4g}"


def _axes(
    across: Scale,
    across_ticks: Sequence[float],
    upward: Scale,
    up_ticks: Sequence[float],
    value_text: Callable[[float], str],
) -> list[str]:
    drawn = [line(_LEFT, _BOTTOM, _WIDTH - _RIGHT, _BOTTOM, "axis")]
    for tick in up_ticks:
        drawn.append(line(_LEFT, upward(tick), _WIDTH - _RIGHT, upward(tick), "grid"))
        drawn.append(label(_LEFT - 8, upward(tick) + 4, value_text(tick), "tick", "end"))
    for tick in across_ticks:
        drawn.append(label(across(tick), _BOTTOM + 18, f"{tick:.4g}", "tick", "middle"))
    said = "MFLOP of training, a sample"
    drawn.append(label(_WIDTH - _RIGHT, _BOTTOM + 34, said, "tick", "end"))
    return drawn


def _front(front: Sequence[_Dot], across: Scale, upward: Scale) -> str:
    places = sorted((dot.cost, dot.score) for dot in front)
    path = " ".join(f"{across(cost):.1f},{upward(score):.1f}" for cost, score in places)
    return element("polyline", points=path, class_="curve hand")


def _circle(dot: _Dot, across: Scale, upward: Scale) -> str:
    one = dot.one
    scores = f"accuracy {share_text(one.accuracy)}, loss {loss_text(one.loss)}"
    tip = f"{one.bits}: {scores}, {count_text(one.parameters)} parameters"
    title = element("title", escape(tip))
    style = "dot hand" if one.on_front else "dot main"
    x, y = across(dot.cost), upward(dot.score)
    return element("circle", title, cx=x, cy=y, r=3.4, class_=style)
