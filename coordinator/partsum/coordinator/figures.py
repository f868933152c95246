"""Figures as people read them, the same in the terminal and in the report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime

MISSING = "-"
PHASE_NAMES = {"parts": "parts", "cotrain": "co-training", "handoff": "hand-off"}


def share_text(value: float | None) -> str:
    """A share in [0, 1] as a percentage; a metric of another kind as it is."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.2f} %" if 0 <= value <= 1 else f"{value:.4g}"


def loss_text(value: float | None) -> str:
    """A loss, with four digits that count."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def bytes_text(value: float | None) -> str:
    """Bytes in decimal units, three digits that count: 12.3 MB."""
    if value is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def seconds_text(value: float | None) -> str:
    """A duration: 4 ms, 0.25 s, 8.4 s, 2 min 05 s, 3 h 12 min."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 0.0995:
        return f"{1000 * value:.0f} ms" if value else "0 s"
    if value < 59.95:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock_text(value: float) -> str:
    """Elapsed time as a clock: 0:08, 12:05, 3:12:05."""
    minutes, seconds = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def rate_text(value: float | None) -> str:
    """Samples a second."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def gflop_text(flops: float) -> str:
    """Floating-point operations in units of 1e9, as a bare number: 0.0034, 1.5, 12,345."""
    value = flops / 1e9
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def count_text(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def names_text(names: Iterable[str]) -> str:
    """Names in the order of their first, those alike but for numbers together: layers.*.up (x 16).

    "nothing" where there are none.
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
    told = (
        f"{pattern} (x {len(same)})" if len(same) > 1 else same[0]
        for pattern, same in alike.items()
    )
    return ", ".join(told) or "nothing"


def short_text(value: float) -> str:
    """A large number in three digits that count: 1.5k, 24.3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def moment_text(iso: str) -> str:
    """An ISO 8601 moment without its T and its fractions: 2026-03-02 09:14:05 UTC."""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = moment.strftime("%Z") or "local time"
    return f"{moment:%Y-%m-%d %H:%M:%S} {zone}"


def plain_text(value: str) -> str:
    """Text from the wire, on one line and without control characters: terminals obey those."""
    return "".join(c if c.isprintable() else " " for c in value)
