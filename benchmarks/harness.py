"""What benchmarks share: a real coordinator and node processes, their summary, figures as JSON."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from partsum.coordinator.demo import watched
from partsum.coordinator.summary import Summary, read_summary
from partsum.shared.config import RunConfig, parse_config
from partsum.shared.errors import EXIT_OK, EXIT_STOPPED, PartsumError

_TABLE_WIDTH = 160
_SAID = 1500  # characters of what a failed run said that go into the error


def parser(description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="one seed, less work, a first look")
    made.add_argument("--json", type=Path, metavar="FILE", help="write name -> number there")
    made.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/benchmarks"),
        help="where runs are kept; a finished one of the same config is not run again "
        "(default: %(default)s)",
    )
    return made


def wide_console() -> Console:
    """A terminal's own width, else one that tables fit into."""
    console = Console()
    return console if console.is_terminal else Console(width=_TABLE_WIDTH)


def run(config: Mapping[str, Any], folder: Path, nodes: int) -> tuple[Summary, Path]:
    """Run a config to its end with so many node processes, or take the finished run in ``folder``.

    Returns its summary and the run's folder.

    Raises:
        PartsumError: the run did not finish; what it said is in the message.
        KeyboardInterrupt: it was stopped.
    """
    text = to_toml({**config, "folder": str(folder), "server": {"port": 0, "metrics_port": 0}})
    found = finished(folder, parse_config(text))
    if found is not None:
        return found, folder / "latest"
    # OpenMP's waiting threads spin: with other work on the cores, two threads took ten times as
    # long as one (measured). One also makes results independent of the number of cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logs = folder / "processes"
    logs.mkdir(parents=True, exist_ok=True)
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    said = io.StringIO()
    code = asyncio.run(watched(path, logs, nodes, new=True, console=Console(file=said)))
    if code == EXIT_STOPPED:
        raise KeyboardInterrupt
    if code != EXIT_OK:
        raise PartsumError(f"the run in {folder} failed:\n{said.getvalue()[-_SAID:]}")
    return read_summary(folder / "latest" / "summary.json"), folder / "latest"


def finished(folder: Path, config: RunConfig) -> Summary | None:
    """The summary of a finished run of that config, wherever its folder was then."""
    path = folder / "latest" / "summary.json"
    if not path.exists():
        return None
    summary = read_summary(path)
    wanted = {**config.model_dump(mode="json"), "folder": summary.config["folder"]}
    return summary if summary.state == "finished" and summary.config == wanted else None


def to_toml(values: Mapping[str, Any]) -> str:
    """Values as TOML: plain ones first, then a table for each mapping, dotted where nested."""
    lines = [f"{key} = {_literal(value)}" for key, value in values.items() if not _is_table(value)]
    for name, table in values.items():
        if _is_table(table):
            lines += [f"[{name}]", *(f"{key} = {_literal(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _literal(value: object) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {_literal(inner)}" for key, inner in value.items())
        return f"{{ {inner} }}"
    return json.dumps(value)  # of numbers, texts, booleans and lists TOML's form is JSON's


@dataclass(frozen=True)
class Spread:
    """The mean of some values, and their standard deviation (0 for one value)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError for no values."""
        if not values:
            raise ValueError("no values: a benchmark without seeds has no mean")
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def text(self, digits: int = 2, factor: float = 1.0) -> str:
        """``86.19 +- 0.15``, the deviation only where there is one."""
        mean = f"{self.mean * factor:.{digits}f}"
        return f"{mean} +- {self.deviation * factor:.{digits}f}" if self.deviation else mean


def write_figures(path: Path, figures: Mapping[str, float]) -> None:
    """Write a flat JSON object of name -> number, sorted by name.

    Raises:
        ValueError: a figure is not a finite number.
    """
    for name, value in figures.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"figure {name!r} is {value!r}; it has to be a finite number")
    path.write_text(json.dumps(dict(sorted(figures.items())), indent=2) + "\n", encoding="utf-8")
