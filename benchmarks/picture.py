"""Pictures: what every benchmark's has in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DPI = 110


@contextmanager
def picture(path: Path, columns: int = 1, width: float = 6.0, height: float = 4.5) -> Iterator[Any]:
    """Matplotlib axes, side by side, each so many inches; written to ``path`` as PNG at the end."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained"
    )
    try:
        yield axes[0]
        figure.savefig(path, dpi=_DPI)
    finally:
        pyplot.close(figure)


def bars(axis: Any, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """A bar for each series in each group, its value above it; NaN: no bar."""
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * width
        drawn = axis.bar([group + shift for group in range(len(groups))], values, width, label=name)
        axis.bar_label(drawn, [_short(value) for value in values], fontsize=8)
    axis.set_xticks(range(len(groups)), groups)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=9)


def _short(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
