"""A study as one picture: accuracy against parameters, FLOPs and time, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from partsum.coordinator.figures import seconds_text, share_text, short_text
from partsum.coordinator.report_svg import (
    Scale,
    element,
    escape,
    label,
    line,
    nice_ticks,
    picture,
)
from partsum.coordinator.study.results import Mean, Row, means
from partsum.coordinator.study.table import NAMES

_WIDTH, _GAP, _LEFT, _TOP, _BOTTOM = 300.0, 24.0, 64.0, 34.0, 284.0
_KEY_HEIGHT, _KEY_WIDTH = 20.0, 300.0
_HUES = ("#333333", "#3b6fb6", "#c2571a", "#2f8f5b", "#a23b72", "#7a6a2b")
_DASHES = {"scratch": "1 0", "rewound": "2 3", "tuned": "7 3"}
_STYLE = """
text{font:12px system-ui,sans-serif;fill:#333}.tick{fill:#777;font-size:11px}
.title{font-weight:600}.line{fill:none;stroke-width:1.8}.dot{stroke-width:3}.grid{stroke:#e4e4e4}.axis{stroke:#999}
svg{background:#fff}
"""

Figure = Callable[[Row], float | None]


@dataclass(frozen=True)
class Series:
    """Models that differ in their width alone, the narrowest first."""

    name: str
    style: str  # units by hue, data by strength
    dash: str  # of its line: starts
    points: tuple[Mean, ...]


def study_svg(rows: Sequence[Row]) -> str:
    """The picture, whole in itself; where no accuracy was measured it says so."""
    shown = series(means(rows))
    accuracies = [point.row.accuracy or 0.0 for one in shown for point in one.points]
    if not accuracies:
        said = label(20, 30, "No model of this study has an accuracy.")
        return picture(_LEFT + _WIDTH, 60, "an empty study", [element("style", _STYLE), said])
    ticks = nice_ticks(min(accuracies), max(accuracies))
    upward = Scale(ticks[0], ticks[-1], _BOTTOM, _TOP)
    width = _LEFT + 3 * (_WIDTH + _GAP)
    drawn = [element("style", _STYLE)]
    for tick in ticks:
        drawn.append(line(_LEFT, upward(tick), width - _GAP, upward(tick), "grid"))
        drawn.append(label(_LEFT - 8, upward(tick) + 4, f"{100 * tick:.4g} %", "tick", "end"))
    panels: tuple[tuple[str, Figure, Callable[[float], str]], ...] = (
        ("parameters", lambda row: row.parameters, short_text),
        ("training, GFLOP", lambda row: row.flops / 1e9, short_text),
        ("training time on its node", lambda row: row.train_seconds, seconds_text),
    )
    for k, (title, figure, text) in enumerate(panels):
        drawn += _panel(_LEFT + k * (_WIDTH + _GAP), title, figure, text, shown, upward)
    keys, height = _keys(shown, width)
    return picture(width, height, "accuracy against size and cost", [*drawn, *keys]) + "\n"


def series(found: Sequence[Mean]) -> list[Series]:
    """Lines of the picture. A whole model ends each line that it belongs to."""
    points = [mean for mean in found if mean.row.accuracy is not None and mean.row.start != "base"]
    kinds = dict.fromkeys((m.row.start, m.row.selection, m.row.data) for m in points)
    cut = [kind for kind in kinds if _is_cut(kind, points)]
    shares = sorted({data for _, _, data in kinds}, reverse=True)
    hues = list(dict.fromkeys(selection or start for start, selection, _ in cut))
    made = []
    for start, selection, data in cut:
        own = [
            mean
            for mean in points
            if (mean.row.start, mean.row.data) == (start, data)
            and mean.row.selection in {selection, ""}
        ]
        units = f", {NAMES.get(selection, selection)}" if selection else ""
        seen = f", {100 * data:.4g} % of the data" if len(shares) > 1 else ""
        by_width = tuple(sorted(own, key=lambda mean: mean.row.keep))
        hue = _HUES[hues.index(selection or start) % len(_HUES)]
        strength = max(0.3, 1 - 0.35 * shares.index(data))
        style = f"stroke:{hue};opacity:{strength:.2f}"
        made.append(Series(f"{start}{units}{seen}", style, _DASHES[start], by_width))
    return made


def _is_cut(kind: tuple[str, str, float], points: Sequence[Mean]) -> bool:
    """Whether the kind has lines of its own: a whole model is the end of others' lines."""
    start, selection, data = kind
    others = {m.row.selection for m in points if (m.row.start, m.row.data) == (start, data)}
    return bool(selection) or others == {""}


def _panel(
    left: float,
    title: str,
    figure: Figure,
    text: Callable[[float], str],
    shown: Sequence[Series],
    upward: Scale,
) -> list[str]:
    """One set of axes; the horizontal one is logarithmic."""
    values = [figure(point.row) for one in shown for point in one.points]
    logs = [math.log10(value) for value in values if value]
    if not logs:
        return []
    low, high = min(logs), max(logs)
    margin = 0.05 * (high - low) or 0.5
    across = Scale(low - margin, high + margin, left, left + _WIDTH)
    drawn = [
        line(left, _BOTTOM, left + _WIDTH, _BOTTOM, "axis"),
        label(left, _TOP - 14, title, "title"),
    ]
    for tick in _log_ticks(across):
        x = across(math.log10(tick))
        drawn.append(line(x, _TOP, x, _BOTTOM + 4, "grid"))
        drawn.append(label(x, _BOTTOM + 18, text(tick), "tick", "middle"))
    for one in shown:
        drawn += _line(one, figure, across, upward)
    return drawn


def _line(one: Series, figure: Figure, across: Scale, upward: Scale) -> list[str]:
    places = [
        (across(math.log10(x)), upward(point.row.accuracy or 0.0), point)
        for point in one.points
        if (x := figure(point.row))
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    look = {"class_": "line", "style": one.style, "stroke_dasharray": one.dash}
    drawn = [element("polyline", points=path, **look)]
    for x, y, point in places:
        tip = f"{one.name}, {100 * point.row.keep:.4g} % kept: {share_text(point.row.accuracy)}"
        title = element("title", escape(tip))
        drawn.append(element("circle", title, cx=x, cy=y, r=2, class_="dot", style=one.style))
    return drawn


def _log_ticks(across: Scale) -> list[float]:
    """Powers of ten, and multiples of these where a panel spans few of them."""
    span = across.high - across.low
    steps = (1, 2, 3, 5, 7) if span < 0.8 else (1, 2, 5) if span < 2 else (1,)
    powers = range(math.floor(across.low), math.ceil(across.high) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in ticks if across.low <= math.log10(tick) <= across.high]


def _keys(shown: Sequence[Series], width: float) -> tuple[list[str], float]:
    """The legend below, in as many columns as fit; and the height of it all."""
    columns = max(1, int((width - _LEFT) // _KEY_WIDTH))
    drawn, top = [], _BOTTOM + 46
    for k, one in enumerate(shown):
        x, y = _LEFT + k % columns * _KEY_WIDTH, top + k // columns * _KEY_HEIGHT
        look = {"class_": "line", "style": one.style, "stroke_dasharray": one.dash}
        drawn.append(element("line", x1=x, y1=y - 4, x2=x + 28, y2=y - 4, **look))
        drawn.append(label(x + 34, y, one.name))
    return drawn, top + math.ceil(len(shown) / columns) * _KEY_HEIGHT
