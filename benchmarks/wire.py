"""Accuracy against bytes: every wire type up and down.

    python benchmarks/wire.py [--quick] [--json FILE] [--plot FILE]

An MLP on Fashion-MNIST, four nodes: federated averaging of the whole model, residual parts and
block parts, without a hand-off. Really trained, encoded, decoded and merged, in one process. Rows
are named by what goes up and what comes down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.encoded.cluster import Outcome, play
from benchmarks.encoded.plot import draw
from benchmarks.harness import Spread, parser, to_toml, wide_console, write_figures

TYPES = ("float32", "bfloat16", "int8")
PLANNERS: Mapping[str, Mapping[str, Any]] = {
    "full": {"planner": "full"},
    "residual": {"mode": "residual"},
    "block": {"mode": "block"},
}


@dataclass(frozen=True)
class Row:
    """A way to send and to fetch."""

    up: str
    down: str = "float32"
    feedback: bool = True

    @property
    def name(self) -> str:
        """As in tables: up / down."""
        return f"{self.up} / {self.down}" + ("" if self.feedback else ", nothing fed back")


ROWS: Mapping[str, Sequence[Row]] = {
    "full": [Row(up, down) for up in TYPES for down in TYPES] + [Row("int8", "int8", False)],
    "residual": [Row(up, down) for up in TYPES for down in TYPES[:2]],
    "block": [*(Row(up) for up in TYPES), Row("int8", feedback=False)],
}


def config(planner: str, row: Row, seed: int, rounds: int, widths: Sequence[int]) -> dict[str, Any]:
    """A run of one row."""
    return {
        "name": "wire",
        "seed": seed,
        "keep_bases": 2,
        "task": {
            "name": "partsum.shared.tasks:image_mlp",
            "options": {
                "folder": "/usr/share/datasets/fashion-mnist",
                "widths": list(widths),
            },
        },
        "parts": {**PLANNERS[planner], "count": 4, "rounds": rounds, "local_epochs": 0.1},
        "training": {"batch_size": 64, "learning_rate": 1e-3},
        "merge": {"norm_bound": 0.0},
        "handoff": {"enabled": False},
        "wire": {"up": row.up, "down": row.down},
    }


Outcomes = dict[str, list[Outcome]]
"""Row name -> an outcome for each seed."""


def measure(planner: str, seeds: Sequence[int], rounds: int, widths: Sequence[int]) -> Outcomes:
    """Every row of a planner."""
    return {
        row.name: [
            play(to_toml(config(planner, row, seed, rounds, widths)), row.feedback)
            for seed in seeds
        ]
        for row in ROWS[planner]
    }


def table(planner: str, rows: Outcomes) -> Table:
    """Wire types down; accuracy, loss and megabytes of all nodes and rounds across."""
    made = Table(title=planner, box=None, header_style="dim")
    for column in (
        "up / down",
        "accuracy %",
        "loss",
        "sent MB",
        "fetched MB",
        "of float32's bytes",
    ):
        made.add_column(column)
    whole = _moved(next(iter(rows.values())))
    for name, outcomes in rows.items():
        made.add_row(
            name,
            Spread.of([o.accuracy for o in outcomes]).text(2, 100),
            Spread.of([o.loss for o in outcomes]).text(4),
            Spread.of([o.sent_bytes / 1e6 for o in outcomes]).text(2),
            Spread.of([o.fetched_bytes / 1e6 for o in outcomes]).text(2),
            f"{_moved(outcomes) / whole:.0%}",
        )
    return made


def _moved(outcomes: Sequence[Outcome]) -> float:
    return Spread.of([float(o.sent_bytes + o.fetched_bytes) for o in outcomes]).mean


def figures(planner: str, rows: Outcomes) -> dict[str, float]:
    """Means over seeds, by planner/row."""
    found = {}
    for name, outcomes in rows.items():
        for what in ("accuracy", "loss", "sent_bytes", "fetched_bytes"):
            values = [float(getattr(outcome, what)) for outcome in outcomes]
            found[f"{planner}/{name}/{what}"] = Spread.of(values).mean
    return found


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    seeds, rounds = ((0,), 3) if options.quick else ((0, 1, 2), 10)
    widths = (64, 64) if options.quick else (256, 256, 256)
    console = wide_console()
    measured: dict[str, float] = {}
    drawn: dict[str, Outcomes] = {}
    began = time.monotonic()
    for planner in ROWS:
        drawn[planner] = measure(planner, seeds, rounds, widths)
        console.print(table(planner, drawn[planner]))
        measured |= figures(planner, drawn[planner])
    console.print(f"{time.monotonic() - began:.0f} s")
    if options.json:
        write_figures(options.json, measured)
    if options.plot:
        draw(drawn, options.plot)


if __name__ == "__main__":
    main()
