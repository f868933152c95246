"""Rounds with a no-op trainer: latency, bytes a second through the whole loop, coordinator memory.

    python benchmarks/rounds.py [--quick] [--json FILE]

Real coordinator and node processes on loopback; federated averaging of the whole model, so that
every node receives and sends all of it in each round. Nodes give back what they were sent without
training. A round is everything from one commit to the next: plan, send, receive, check, merge,
write and sync the new base, commit. The ratio is against a bare gRPC stream between two processes,
measured in the same call.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import parser, run, write_figures

from partsum.coordinator.summary import Summary


@dataclass(frozen=True)
class Case:
    """A model of ``layers`` matrices of ``width``, on so many nodes, for so many rounds."""

    name: str
    width: int
    layers: int
    nodes: int
    rounds: int

    @property
    def model_bytes(self) -> int:
        """Of the float32 weights."""
        return 4 * self.layers * self.width**2


CASES = (
    Case("40kB", 100, 1, 2, 40),
    Case("10MB", 500, 10, 2, 20),
    Case("400MB", 3162, 10, 2, 4),
    Case("400MB", 3162, 10, 8, 2),
)
QUICK = (CASES[0], Case("10MB", 500, 10, 2, 5), Case("100MB", 1581, 10, 2, 3))


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Run a case; its figures by name."""
    config = {
        "name": "rounds",
        "deterministic": False,
        "task": {
            "name": "blank:blank",
            "options": {"width": case.width, "layers": case.layers + 1},
        },
        "parts": {
            "planner": "full",
            "count": case.nodes,
            "rounds": case.rounds,
            "local_epochs": 0.0,
            "evaluate_every": 0,
        },
        "handoff": {"enabled": False},
    }
    where = folder / f"{case.name}-{case.nodes}-{time.time_ns()}"
    where.mkdir(parents=True)
    summary, _ = run(config, where, case.nodes)
    return figures_of(case, summary)


def figures_of(case: Case, summary: Summary) -> dict[str, float]:
    """Median round, bytes a second, stages and memory; the first round is warm-up."""
    closed = [entry.closed_seconds for entry in summary.rounds]
    seconds = statistics.median(after - before for before, after in pairwise(closed))
    moved = 2 * case.nodes * case.model_bytes
    prefix = f"{case.name}_{case.nodes}nodes"
    found = {
        f"{prefix}_round_seconds": seconds,
        f"{prefix}_megabytes_per_second": moved / seconds / 1e6,
        f"{prefix}_coordinator_peak_bytes": float(summary.peak_rss_bytes),
        f"{prefix}_peak_over_model": summary.peak_rss_bytes / case.model_bytes,
    }
    for stage in ("plan", "send", "receive", "merge"):
        values = [getattr(entry.stage_seconds, stage) for entry in summary.rounds[1:]]
        found[f"{prefix}_{stage}_seconds"] = statistics.median(v for v in values if v is not None)
    return found


def bare_stream(megabytes: int) -> float:
    """MB/s of a gRPC stream of 1 MiB messages from one process to another, and nothing else."""
    script = Path(__file__).with_name("bare_stream.py")
    said = subprocess.run(
        [sys.executable, str(script), str(megabytes)], capture_output=True, text=True, check=True
    )
    return float(said.stdout)


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "").parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    table = Table(box=None, header_style="dim")
    columns = ("model", "nodes", "round", "MB/s", "send", "receive", "merge", "peak", "of model")
    for column in columns:
        table.add_column(column, justify="right")
    figures = {"bare_stream_megabytes_per_second": bare_stream(256 if options.quick else 1024)}
    for case in QUICK if options.quick else CASES:
        found = measure(case, options.folder / "rounds")
        figures |= found
        p = f"{case.name}_{case.nodes}nodes"
        table.add_row(
            case.name,
            str(case.nodes),
            f"{found[p + '_round_seconds']:.3f} s",
            f"{found[p + '_megabytes_per_second']:,.0f}",
            f"{found[p + '_send_seconds']:.3f} s",
            f"{found[p + '_receive_seconds']:.3f} s",
            f"{found[p + '_merge_seconds']:.3f} s",
            f"{found[p + '_coordinator_peak_bytes'] / 1e6:,.0f} MB",
            f"{found[p + '_peak_over_model']:.2f} x",
        )
    console = Console(width=100)
    console.print(table)
    console.print(f"bare gRPC stream: {figures['bare_stream_megabytes_per_second']:,.0f} MB/s")
    if options.json:
        write_figures(options.json, figures)


if __name__ == "__main__":
    main()
