"""Markup by small functions: elements that escape what they are given, scales and axes."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass


def escape(value: object) -> str:
    """Text that is safe between tags and in attributes."""
    return html.escape(str(value), quote=True)


def element(name: str, *children: str, **attributes: object) -> str:
    """``<name attributes>children</name>``. Attributes are escaped; children must be markup.

    ``class_`` becomes class, and other underscores hyphens. Numbers are cut to 1/100 pixel.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


@dataclass(frozen=True)
class Scale:
    """A straight line from values to pixels."""

    low: float
    high: float
    first: float  # the pixel of low
    last: float  # the pixel of high

    def __call__(self, value: float) -> float:
        """The value's pixel."""
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values that span [low, high] in about ``count`` steps; the ends may lie outside."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 20, high + (abs(high) or 1) / 20
    step = _nice_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _nice_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= least * (1 - 1e-9))


_TIMES = (
    1.0,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
    86400,
)


def time_ticks(seconds: float, count: int = 8) -> tuple[list[tuple[float, str]], str]:
    """Ticks from 0 to within ``seconds`` with their labels, and the unit of the labels."""
    unit, size = next((u, s) for u, s in _UNITS if seconds < 120 * s or u == "h")
    least = max(seconds, 1e-3) / count
    round_times = (time for time in _TIMES if time >= least)
    step = next(round_times, _nice_step(least)) if least > 0.5 else _nice_step(least)
    ticks = [k * step for k in range(math.floor(seconds / step + 1e-9) + 1)]
    return [(tick, f"{tick / size:g}") for tick in ticks], unit


_UNITS = (("s", 1), ("min", 60), ("h", 3600))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label(x: float, y: float, value: object, class_: str = "", anchor: str = "start") -> str:
    """Text at a point; ``anchor`` is start, middle or end."""
    return element("text", escape(value), x=x, y=y, class_=class_, text_anchor=anchor)


def box(
    x: float, y: float, width: float, height: float, class_: str, tip: str = "", radius: float = 0
) -> str:
    """A rectangle, with a tooltip where ``tip`` is not empty."""
    inside = element("title", escape(tip)) if tip else ""
    return element("rect", inside, x=x, y=y, width=width, height=height, rx=radius, class_=class_)


def time_axis(scale: Scale, y: float, top: float) -> str:
    """A time axis from 0 s on, at the height ``y``; grid lines go up to ``top``."""
    ticks, unit = time_ticks(scale.high)
    drawn = [line(scale.first, y, scale.last, y, "axis")]
    for value, name in ticks:
        drawn.append(line(scale(value), top, scale(value), y + 4, "grid"))
        drawn.append(label(scale(value), y + 18, name, "tick", "middle"))
    drawn.append(label(scale.last, y + 34, f"time since the start ({unit})", "tick", "end"))
    return "".join(drawn)


def drawing(width: float, height: float, description: str, parts: Sequence[str]) -> str:
    """A `picture` in a box of its own, which scrolls where the page is narrow."""
    return element("div", picture(width, height, description, parts), class_="wide")


def picture(width: float, height: float, description: str, parts: Sequence[str]) -> str:
    """An SVG picture that says what it shows to those who cannot see it."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=description,
        xmlns="http://www.w3.org/2000/svg",
    )
