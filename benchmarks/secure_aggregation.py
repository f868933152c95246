"""What secure aggregation costs: bytes and seconds of a round, with masks and without.

    python benchmarks/secure_aggregation.py [--quick] [--json FILE]

Real coordinator and node processes on loopback, federated averaging: the digits MLP, and models of
nothing but weights with a no-op trainer, where a round is little else than moving and summing them.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, run, write_figures


@dataclass(frozen=True)
class Case:
    """A task with its options, on so many nodes, for so many rounds."""

    name: str
    task: str
    options: dict[str, Any]
    epochs: float
    nodes: int = 4
    rounds: int = 12


CASES = (
    Case("digits_mlp", "partsum.shared.tasks:digits", {"widths": [32, 32]}, 1.0),
    Case("10MB", "partsum.shared.tasks:blank", {"width": 500, "layers": 10}, 0.0),
    Case("100MB", "partsum.shared.tasks:blank", {"width": 1581, "layers": 10}, 0.0, rounds=5),
)


def measure(case: Case, masked: bool, folder: Path) -> dict[str, float]:
    """Run a case; the first round is warm-up."""
    config = {
        "name": "secure",
        "task": {"name": case.task, "options": case.options},
        "parts": {
            "planner": "full",
            "count": case.nodes,
            "rounds": case.rounds,
            "local_epochs": case.epochs,
            "evaluate_every": 0,
        },
        "privacy": {"secure_aggregation": masked},
        "handoff": {"enabled": False},
    }
    where = folder / f"{case.name}-{'masked' if masked else 'plain'}-{time.time_ns()}"
    where.mkdir(parents=True)
    summary, _ = run(config, where, case.nodes)
    closed = [entry.closed_seconds for entry in summary.rounds]
    merges = [entry.stage_seconds.merge or 0.0 for entry in summary.rounds[1:]]
    each = case.nodes * case.rounds
    return {
        "round_seconds": statistics.median(after - before for before, after in pairwise(closed)),
        "merge_seconds": statistics.median(merges),
        "bytes_from_a_node": summary.phases[0].bytes_received / each,
        "bytes_to_a_node": summary.phases[0].bytes_sent / each,
        "coordinator_peak_bytes": float(summary.peak_rss_bytes),
    }


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "").parse_args()
    table = Table(box=None, header_style="dim")
    for column in ("model", "masks", "round", "merge", "a node sends", "receives", "peak"):
        table.add_column(column, justify="right")
    figures: dict[str, float] = {}
    for case in CASES[:2] if options.quick else CASES:
        for masked in (False, True):
            found = measure(case, masked, options.folder / "secure")
            prefix = f"{case.name}_{'masked' if masked else 'plain'}"
            figures |= {f"{prefix}_{name}": value for name, value in found.items()}
            table.add_row(
                case.name,
                "yes" if masked else "no",
                f"{found['round_seconds']:.3f} s",
                f"{found['merge_seconds']:.3f} s",
                f"{found['bytes_from_a_node']:,.0f} B",
                f"{found['bytes_to_a_node']:,.0f} B",
                f"{found['coordinator_peak_bytes'] / 1e6:,.0f} MB",
            )
    Console(width=100).print(table)
    if options.json:
        write_figures(options.json, figures)


if __name__ == "__main__":
    main()
