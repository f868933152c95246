"""The report's pictures: curves over time, each node's timeline, the parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from partsum.coordinator.figures import seconds_text
from partsum.coordinator.ranges import visible_ranges
from partsum.coordinator.report_svg import (
    Scale,
    box,
    drawing,
    element,
    escape,
    label,
    line,
    nice_ticks,
    time_axis,
)
from partsum.coordinator.summary import NodeSummary, Summary, TimelineSummary

WIDTH = 880.0
_LEFT = 96.0  # the same for all that has a time axis, so that moments line up
_RIGHT = 14.0
_DOTS = 24  # a curve of more points than this is drawn without dots


@dataclass(frozen=True)
class Curve:
    """A line through (seconds, value) points. ``style`` is a CSS class of report.css."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Band:
    """A phase, marked behind the curves."""

    name: str
    start_seconds: float
    end_seconds: float


def part_style(part: int) -> str:
    """The CSS classes of a part's colour: eight hues in three strengths, then again."""
    return f"p{part % 8} s{part // 8 % 3}"


def curve_chart(
    title: str,
    curves: Sequence[Curve],
    bands: Sequence[Band],
    end_seconds: float,
    value_text: Callable[[float], str],
) -> str:
    """Curves over the run's time, phases marked; a sentence where there is nothing to draw."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return element("p", f"{escape(title)}: nothing was measured.", class_="quiet")
    top, bottom = 26.0, 196.0
    values = [value for curve in curves for _, value in curve.points]
    ticks = nice_ticks(min(values), max(values))
    across = Scale(0, max(end_seconds, 1e-9), _LEFT, WIDTH - _RIGHT)
    upward = Scale(ticks[0], ticks[-1], bottom, top)
    drawn = [_band(band, k, across, top, bottom) for k, band in enumerate(bands)]
    drawn.append(time_axis(across, bottom, top))
    for tick in ticks:
        drawn.append(line(_LEFT, upward(tick), WIDTH - _RIGHT, upward(tick), "grid"))
        drawn.append(label(_LEFT - 8, upward(tick) + 4, value_text(tick), "tick", "end"))
    drawn += [_curve(curve, across, upward, value_text) for curve in curves]
    keys = "".join(
        element("li", element("i", class_=f"key {c.style}"), escape(c.name)) for c in curves
    )
    legend = element("ul", keys, class_="legend")
    return legend + drawing(WIDTH, bottom + 38, f"{title} over time", drawn)


def _band(band: Band, place: int, across: Scale, top: float, bottom: float) -> str:
    start, end = across(band.start_seconds), across(min(band.end_seconds, across.high))
    width = max(end - start, 0.0)
    shade = box(start, top, width, bottom - top, f"band b{place % 2}", band.name)
    name = label(start + 6, top - 8, band.name, "band-name") if width > 7 * len(band.name) else ""
    return shade + line(start, top - 16, start, bottom, "band-edge") + name


def _curve(curve: Curve, across: Scale, upward: Scale, value_text: Callable[[float], str]) -> str:
    places = [(across(seconds), upward(value)) for seconds, value in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = [element("polyline", points=path, class_=f"curve {curve.style}")]
    if len(places) <= _DOTS:
        for (x, y), (seconds, value) in zip(places, curve.points, strict=True):
            tip = f"{curve.name}: {value_text(value)} at {seconds_text(seconds)}"
            title = element("title", escape(tip))
            drawn.append(element("circle", title, cx=x, cy=y, r=2.8, class_=f"dot {curve.style}"))
    return "".join(drawn)


def timeline_chart(
    nodes: Sequence[NodeSummary], bands: Sequence[Band], closed: Sequence[float], end: float
) -> str:
    """One row for each node: training in its part's colour, the wire grey, gone hatched.

    ``closed`` are the moments when rounds were committed.
    """
    top = 26.0
    pitch = 26.0 if len(nodes) <= 12 else 16.0
    bottom = top + pitch * len(nodes)
    across = Scale(0, max(end, 1e-9), _LEFT, WIDTH - _RIGHT)
    drawn = [_HATCH, *(_band(band, k, across, top, bottom) for k, band in enumerate(bands))]
    drawn.append(time_axis(across, bottom, top))
    drawn += [line(across(at), top, across(at), bottom, "closed") for at in closed if at <= end]
    for row, node in enumerate(nodes):
        y = top + row * pitch
        drawn.append(label(_LEFT - 10, y + pitch / 2 + 4, _cut(node.name, 13), "name", "end"))
        drawn.append(line(_LEFT, y + pitch / 2, WIDTH - _RIGHT, y + pitch / 2, "idle"))
        drawn += [_stretch(node.name, stay, across, y, pitch) for stay in node.timeline]
    return drawing(WIDTH, bottom + 38, "What each node did over time", drawn)


_HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="5" height="5" class="hatch-ground"/>'
    '<rect width="2" height="5" class="hatch-line"/></pattern></defs>'
)


def _stretch(node: str, stay: TimelineSummary, across: Scale, y: float, pitch: float) -> str:
    if stay.state == "idle":
        return ""
    start, end = across(stay.start_seconds), across(min(stay.end_seconds, across.high))
    width = max(end - start, 0.8)
    inset = 3.0 if stay.state == "training" else pitch * 0.3
    style = f"work {part_style(stay.part)}" if stay.state == "training" else stay.state
    where = f", round {stay.round}" if stay.round else ""
    what = f" part {stay.part}" if stay.part >= 0 else ""
    took = seconds_text(stay.end_seconds - stay.start_seconds)
    tip = f"{node}: {stay.state}{what}{where}, {took}"
    drawn = box(start, y + inset, width, pitch - 2 * inset, style, tip, min(2.0, width / 6))
    if stay.state == "training" and width > 22 and pitch > 20:
        drawn += label(start + width / 2, y + pitch / 2 + 4, stay.part, "inside", "middle")
    return drawn


def parts_picture(summary: Summary) -> str:
    """Each width group as a bar, its units in the colour of the part that keeps them."""
    left, right, top, pitch, height = 188.0, 92.0, 4.0, 30.0, 18.0
    drawn = []
    for row, (name, units) in enumerate(summary.group_units.items()):
        y = top + row * pitch
        across = Scale(0, max(units, 1), left, WIDTH - right)
        drawn.append(label(left - 10, y + height / 2 + 4, _cut(name, 26), "name", "end"))
        drawn.append(box(left, y, across.last - left, height, "unit"))
        drawn.append(label(WIDTH - right + 10, y + height / 2 + 4, f"{units:,} units", "tick"))
        kept = [part.get(name, ((0, units),)) for part in summary.parts]
        # Parts that share units get a lane each; disjoint ones fill one bar between them.
        shared = sum(end - start for ranges in kept for start, end in ranges) > units
        lane = height / len(kept) if shared else height
        for part, ranges in enumerate(kept):
            place = y + part * lane if shared else y
            for start, end in visible_ranges(ranges, units):
                tip = f"{name}: part {part} keeps units {start} to {end - 1}"
                x, width = across(start), across(end) - across(start)
                drawn.append(box(x, place, width, lane, f"unit {part_style(part)}", tip))
    rows = len(summary.group_units)
    return drawing(WIDTH, top + rows * pitch, "Which part keeps which units", drawn)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 2] + ".."
