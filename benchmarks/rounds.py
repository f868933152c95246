"""Rounds with a no-op trainer: latency, bytes a second through the whole loop, coordinator memory.

    python benchmarks/rounds.py [--quick] [--json FILE] [--plot FILE]

Real coordinator and node processes on loopback; federated averaging of the whole model, so that
every node receives and sends all of it in each round. Nodes give back what they were sent without
training. A round is everything from one commit to the next: plan, send, receive, check, merge,
write and sync the new base, commit. Each stage is that of the slowest node; what they do not
explain is the rest (the commit, waits in between), which is negative where nodes' stages overlap.
The share is of what a bare gRPC stream between two processes moves, measured in the same call.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.cases import Case, play, round_seconds
from benchmarks.harness import parser, wide_console, write_figures
from benchmarks.picture import bars, picture

from partsum.coordinator.summary import Summary

CASES = (
    Case("40kB", 71, 2, 2, 40),
    Case("10MB", 500, 10, 2, 20),
    Case("400MB", 3162, 10, 2, 6),
    Case("400MB", 3162, 10, 8, 4),
)
QUICK = (CASES[0], Case("10MB", 500, 10, 2, 5), Case("100MB", 1581, 10, 2, 3))
STAGES = ("plan", "send", "train", "receive", "merge")
Found = Mapping[Case, Mapping[str, float]]


def figures_of(case: Case, summary: Summary) -> dict[str, float]:
    """Median round, bytes a second, stages and memory; the first round is warm-up."""
    seconds = statistics.median(round_seconds([entry.closed_seconds for entry in summary.rounds]))
    found = {
        "round_seconds": seconds,
        "megabytes_per_second": case.round_bytes / seconds / 1e6,
        "coordinator_peak_bytes": float(summary.peak_rss_bytes),
        "peak_over_model": summary.peak_rss_bytes / case.model_bytes,
    }
    for stage in STAGES:
        values = [getattr(entry.stage_seconds, stage) for entry in summary.rounds[1:]]
        found[f"{stage}_seconds"] = statistics.median(v for v in values if v is not None)
    return found | {"rest_seconds": seconds - sum(found[f"{stage}_seconds"] for stage in STAGES)}


def bare_stream(megabytes: int) -> float:
    """MB/s of a gRPC stream of 1 MiB messages from one process to another, and nothing else."""
    script = Path(__file__).with_name("bare_stream.py")
    said = subprocess.run(
        [sys.executable, str(script), str(megabytes)], capture_output=True, text=True, check=True
    )
    return float(said.stdout)


def table(found: Found, bare: float) -> Table:
    """A row for each case."""
    made = Table(box=None, header_style="dim")
    columns = (
        "model",
        "nodes",
        "round",
        "MB/s",
        "of a stream",
        *STAGES,
        "rest",
        "peak",
        "of model",
    )
    for column in columns:
        made.add_column(column, justify="right")
    for case, seen in found.items():
        made.add_row(
            case.name,
            str(case.nodes),
            f"{seen['round_seconds']:.3f} s",
            f"{seen['megabytes_per_second']:,.0f}",
            f"{seen['megabytes_per_second'] / bare:.0%}",
            *(f"{seen[f'{stage}_seconds']:.3f} s" for stage in (*STAGES, "rest")),
            f"{seen['coordinator_peak_bytes'] / 1e6:,.0f} MB",
            f"{seen['peak_over_model']:.2f} x",
        )
    return made


def draw(found: Found, bare: float, path: Path) -> None:
    """Speed beside the bare stream, and where a round's time goes."""
    names = [f"{case.name}\n{case.nodes} nodes" for case in found]
    with picture(path, columns=2) as (speed, time):
        moved = [seen["megabytes_per_second"] for seen in found.values()]
        bars(speed, names, {"through the whole loop": moved})
        speed.axhline(bare, color="grey", linestyle="--", label="a bare gRPC stream")
        speed.set_ylabel("MB/s, both ways, all nodes")
        speed.legend()
        shown = ("round", *STAGES[1:])
        series = {name: [seen[f"{name}_seconds"] for seen in found.values()] for name in shown}
        bars(time, names, series)
        time.set_yscale("log")
        time.set_ylabel("seconds, logarithmic; stages overlap")


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    bare = bare_stream(256 if options.quick else 1024)
    found = {
        case: figures_of(case, play(case, options.folder / "rounds"))
        for case in (QUICK if options.quick else CASES)
    }
    console = wide_console()
    console.print(table(found, bare))
    console.print(f"bare gRPC stream: {bare:,.0f} MB/s")
    if options.json:
        figures = {
            f"{case.name}_{case.nodes}nodes_{name}": value
            for case, seen in found.items()
            for name, value in seen.items()
        }
        write_figures(options.json, {**figures, "bare_stream_megabytes_per_second": bare})
    if options.plot:
        draw(found, bare, options.plot)


if __name__ == "__main__":
    main()
