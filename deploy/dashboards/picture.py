"""A picture of a dashboard from a live Prometheus, where no Grafana is: its panels at their places.

    python -m deploy.dashboards.picture http://127.0.0.1:9090 run.json run.png --minutes 5

It is drawn by matplotlib: what a panel asks and where it stands are the dashboard's, its looks are
not. Tables are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from deploy.dashboards.__main__ import FOLDER

_COLORS = {"text": "#888888"}
_UNIT_INCHES = 0.34  # of Grafana's grid, which is 24 wide


def filled(query: str, window: str) -> str:
    """A query with all variables of the dashboards at All, and rates over ``window``."""
    for name in ("rate_interval", "range"):
        query = query.replace(f"$__{name}", window)
    return re.sub(r"\$(instance|node)\b", ".*", query)


class Picture:
    """One dashboard over a stretch of time (Unix seconds)."""

    def __init__(self, url: str, start: float, end: float, window: str) -> None:
        self._url = url
        self._span = (start, end)
        self._window = window

    def draw(self, board: dict[str, Any], path: Path) -> None:
        """Write it as a PNG."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib.figure import Figure

        panels = board["panels"]
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        figure = Figure(figsize=(24 * _UNIT_INCHES * 1.6, rows * _UNIT_INCHES), dpi=70)
        for panel in panels:
            place = panel["gridPos"]
            left, width = (place["x"] + 0.9) / 24, (place["w"] - 1.1) / 24
            bottom = 1 - (place["y"] + place["h"] - 0.9) / rows
            height = (place["h"] - 2.1) / rows
            if panel["type"] == "row":
                figure.text(0.01, 1 - (place["y"] + 0.8) / rows, panel["title"], weight="bold")
                continue
            axes = figure.add_axes((left, bottom, width, height))
            axes.set_title(panel["title"], fontsize=8, loc="left")
            axes.tick_params(labelsize=6)
            _DRAWN[panel["type"]](axes, panel, self._series(panel))
        figure.savefig(path)

    def _series(self, panel: dict[str, Any]) -> list[tuple[str, list[float], list[float]]]:
        """Each series' legend, times from the start in seconds, and values."""
        start, end = self._span
        step = max(0.25, (end - start) / 400)
        found = []
        for target in panel["targets"]:
            query = filled(target["expr"], self._window)
            words = {"query": query, "start": start, "end": end, "step": step}
            url = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(words)}"
            with closing(urllib.request.urlopen(url, timeout=20)) as answer:
                result = json.loads(answer.read())["data"]["result"]
            for series in result:
                times, values = zip(*series["values"], strict=True)
                name = _legend(target.get("legendFormat", "{{node}}"), series["metric"])
                found.append((name, [at - start for at in times], [float(v) for v in values]))
        return found


def _legend(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), text)


def _shown(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    if unit in {"bytes", "Bps"}:
        power = min(4, int(math.log(abs(value), 1024))) if abs(value) >= 1 else 0
        rate = "/s" if unit == "Bps" else ""
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}{rate}"
    return f"{value:.4g} s" if unit == "s" else f"{value:.4g}"


def _names(panel: dict[str, Any]) -> dict[int, dict[str, str]]:
    mappings = panel["fieldConfig"]["defaults"].get("mappings", [])
    return {int(k): v for mapping in mappings for k, v in mapping["options"].items()}


def _lines(axes: Any, panel: dict[str, Any], series: list[Any]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for name, times, values in series:
        axes.plot(times, values, label=name, linewidth=1)
    axes.yaxis.set_major_formatter(lambda value, _: _shown(value, unit))
    axes.grid(alpha=0.3)
    if 1 < len(series) <= 14:
        axes.legend(fontsize=5, ncols=2, loc="upper left")


def _number(axes: Any, panel: dict[str, Any], series: list[Any]) -> None:
    axes.set_axis_off()
    unit, names = panel["fieldConfig"]["defaults"]["unit"], _names(panel)
    texts = []
    for name, _, values in series:
        last = next((v for v in reversed(values) if math.isfinite(v)), math.nan)
        text = names[int(last)]["text"] if names and int(last) in names else _shown(last, unit)
        if panel["options"].get("textMode") == "name":
            text = name
        texts.append(text if len(series) == 1 else f"{name}: {text}")
    size = 14 if len(texts) == 1 else 7
    axes.text(0.5, 0.45, "\n".join(texts[:5]) or "no data", size=size, ha="center", va="center")


def _timeline(axes: Any, panel: dict[str, Any], series: list[Any]) -> None:
    names = _names(panel)
    for row, (_, times, values) in enumerate(series):
        width = times[1] - times[0] if len(times) > 1 else 1.0
        for value, look in names.items():
            spans = [(at, width) for at, v in zip(times, values, strict=True) if v == value]
            color = _COLORS.get(look["color"], look["color"])
            axes.broken_barh(
                spans, (row - 0.4, 0.8), color=color, label=None if row else look["text"]
            )
    axes.set_yticks(range(len(series)), [name for name, _, _ in series])
    axes.legend(fontsize=6, ncols=len(names), loc="lower left", bbox_to_anchor=(0.3, 1.0))


def _bars(axes: Any, panel: dict[str, Any], series: list[Any]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.barh([name for name, _, _ in series], [values[-1] for _, _, values in series])
    axes.xaxis.set_major_formatter(lambda value, _: _shown(value, unit))
    if panel["type"] == "gauge":
        axes.set_xlim(0, 1)


def _table(axes: Any, panel: dict[str, Any], series: list[Any]) -> None:
    axes.set_axis_off()
    axes.text(0, 0.5, f"(a table of {len(series)} values)", size=8)


_DRAWN: dict[str, Callable[[Any, dict[str, Any], list[Any]], None]] = {
    "timeseries": _lines,
    "stat": _number,
    "state-timeline": _timeline,
    "bargauge": _bars,
    "gauge": _bars,
    "table": _table,
}


def main() -> int:
    """Draw; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw a dashboard from a live Prometheus.")
    parser.add_argument("url", help="Prometheus's address, http://HOST:PORT")
    parser.add_argument("board", help="a file of deploy/docker/grafana/dashboards/: run.json")
    parser.add_argument("png", type=Path, help="the picture to write")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back it goes (60)")
    parser.add_argument("--window", default="20s", help="of rates: at least four scrapes (20s)")
    options = parser.parse_args()
    now = time.time()
    picture = Picture(options.url, now - 60 * options.minutes, now, options.window)
    picture.draw(json.loads((FOLDER / options.board).read_text(encoding="utf-8")), options.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
