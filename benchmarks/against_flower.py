"""Flower in deployment mode and partsum, one after the other: the same rounds without training.

    python benchmarks/against_flower.py [--quick] [--json FILE] [--plot FILE]

Both as real processes on loopback, two nodes, federated averaging of the whole model in float32; a
node sends back what it was sent. Flower 1.42 is installed into an environment of its own and runs
as its guide says: a SuperLink with its state in memory, SuperNodes, `flwr run`, its own FedAvg. A
round is everything from one to the next: by the server app's log there, by the journal here, where
it includes writing and syncing the new base (Flower writes nothing). The first round does not
count. Memory is looked at from outside, five times a second. With `--flower NAME=VALUE` Flower's
processes get other settings from their environment, with `--flower-database` a SQLite file.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks import cases
from benchmarks.cases import Case, round_seconds
from benchmarks.flower import cluster
from benchmarks.flower.environment import VERSION, Environment, FlowerError, install
from benchmarks.harness import parser, wide_console, write_figures
from benchmarks.picture import bars, picture
from benchmarks.resident import Resident

from partsum.shared.errors import PartsumError

SIDES = RIVAL, OURS = "flower", "partsum"
MODELS = {"40kB": (71, 2), "10MB": (500, 10), "400MB": (3162, 10)}
ROUNDS = {
    "40kB": {RIVAL: 6, OURS: 40},
    "10MB": {RIVAL: 6, OURS: 20},
    "400MB": {RIVAL: 4, OURS: 6},
}
QUICK = {"40kB": {RIVAL: 3, OURS: 20}, "10MB": {RIVAL: 3, OURS: 10}}
# Flower looks for work once a second; it allows as little as 0.01 s. What else it waits for has no
# setting.
FASTEST = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}


Figures = Mapping[str, float]
Found = dict[tuple[str, str], dict[str, float]]
"""Figures by model and side."""


@dataclass(frozen=True)
class Seen:
    """One run of one side."""

    seconds: list[float]
    coordinator_bytes: int
    whole_bytes: int
    bytes_a_round: float


def side(command: Sequence[str]) -> str:
    """Whose memory a process is: the coordinator's host's, a node's, or the operator's."""
    words = {Path(word).name for word in command}
    if words & {"coordinator", "flower-superlink"}:
        return "coordinator"
    return "node" if words & {"node", "flower-supernode"} else "operator"


def play_flower(case: Case, flower: Environment, folder: Path, database: str) -> Seen:
    """Raises FlowerError where the run did not come to its end."""
    with Resident(side) as resident:
        played = cluster.play(case, flower, folder / f"flower-{time.time_ns()}", database)
    return Seen(
        played.seconds,
        resident.peak_bytes["coordinator"],
        resident.whole_peak_bytes,
        played.bytes_moved / case.rounds,
    )


def play_partsum(case: Case, folder: Path) -> Seen:
    """Raises PartsumError where the run did not come to its end."""
    with Resident(side) as resident:
        summary = cases.play(case, folder)
    moved = sum(phase.bytes_sent + phase.bytes_received for phase in summary.phases)
    return Seen(
        round_seconds([entry.closed_seconds for entry in summary.rounds]),
        max(summary.peak_rss_bytes, resident.peak_bytes["coordinator"]),
        resident.whole_peak_bytes,
        moved / case.rounds,
    )


def figures_of(case: Case, runs: Sequence[Seen]) -> dict[str, float]:
    """One side's figures for a model; memory is the most of its runs."""
    seconds = [value for run in runs for value in run.seconds]
    median = statistics.median(seconds)
    return {
        "round_seconds": median,
        "fastest_round_seconds": min(seconds),
        "rounds": float(len(seconds)),
        "megabytes_per_second": case.round_bytes / median / 1e6,
        "coordinator_bytes": float(max(run.coordinator_bytes for run in runs)),
        "whole_bytes": float(max(run.whole_bytes for run in runs)),
        "bytes_a_round": statistics.fmean(run.bytes_a_round for run in runs),
    }


def ratios(theirs: Figures, ours: Figures) -> dict[str, float]:
    """How many times faster ours is, and what share of their memory it takes."""
    return {
        "times_faster": theirs["round_seconds"] / ours["round_seconds"],
        "times_faster_than_their_best": theirs["fastest_round_seconds"] / ours["round_seconds"],
        "share_of_coordinator_memory": ours["coordinator_bytes"] / theirs["coordinator_bytes"],
        "share_of_whole_memory": ours["whole_bytes"] / theirs["whole_bytes"],
    }


def compare(
    models: Sequence[str], options: argparse.Namespace, flower: Environment, console: Console
) -> Found:
    """Play every model on both sides in turn; a side that fails is said, and the rest goes on."""
    folder = options.folder.resolve() / "against_flower"
    runs: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for model in models:
        for name in SIDES * options.times:
            case = case_of(model, name, options.quick)
            load = f"load {os.getloadavg()[0]:.1f}"
            try:
                if name == RIVAL:
                    seen = play_flower(case, flower, folder, options.flower_database)
                else:
                    seen = play_partsum(case, folder)
            except (FlowerError, PartsumError) as error:
                console.print(f"{model} {name}, {load}: failed: {error}", markup=False)
                continue
            runs[model, name].append(seen)
            median = statistics.median(seen.seconds)
            console.print(f"{model} {name}, {load}: {len(seen.seconds)} rounds, {median:.3g} s")
    return {
        (model, name): figures_of(case_of(model, name, options.quick), seen)
        for (model, name), seen in runs.items()
    }


def case_of(model: str, name: str, quick: bool) -> Case:
    """What a side runs of a model."""
    rounds = (QUICK if quick else ROUNDS)[model][name]
    return Case(model, *MODELS[model], nodes=2, rounds=rounds)


def both(models: Sequence[str], found: Found) -> dict[str, dict[str, float]]:
    """The ratios by model, where both sides have figures."""
    return {
        model: ratios(found[model, RIVAL], found[model, OURS])
        for model in models
        if (model, RIVAL) in found and (model, OURS) in found
    }


def table(models: Sequence[str], found: Found) -> Table:
    """Both sides of each model, and how many times better ours is."""
    made = Table(box=None, header_style="dim")
    columns = ("model", "", "round", "at best", "MB/s", "coordinator's side", "whole", "MB a round")
    for column in columns:
        made.add_column(column, justify="right")
    compared = both(models, found)
    for model in models:
        for name in SIDES:
            if (model, name) in found:
                seen = found[model, name]
                made.add_row(
                    model,
                    name,
                    f"{seen['round_seconds']:.3f} s",
                    f"{seen['fastest_round_seconds']:.3f} s",
                    f"{seen['megabytes_per_second']:,.1f}",
                    f"{seen['coordinator_bytes'] / 1e6:,.0f} MB",
                    f"{seen['whole_bytes'] / 1e6:,.0f} MB",
                    f"{seen['bytes_a_round'] / 1e6:,.2f}",
                )
        if model in compared:
            made.add_row(
                "",
                "",
                f"{compared[model]['times_faster']:.0f} x faster",
                f"{compared[model]['times_faster_than_their_best']:.0f} x",
                "",
                f"{compared[model]['share_of_coordinator_memory']:.2f} of it",
                f"{compared[model]['share_of_whole_memory']:.2f} of it",
            )
    return made


def draw(models: Sequence[str], found: Found, path: Path) -> None:
    """Seconds a round, and memory on the coordinator's side."""

    def of(name: str, figure: str, unit: float) -> list[float]:
        return [found.get((model, name), {}).get(figure, math.nan) / unit for model in models]

    with picture(path, columns=2) as (speed, memory):
        bars(speed, models, {name: of(name, "round_seconds", 1.0) for name in SIDES})
        speed.set_title("A round without training, 2 nodes")
        speed.set_yscale("log")
        speed.set_ylim(bottom=0.01)
        speed.set_ylabel("seconds, logarithmic")
        bars(memory, models, {name: of(name, "coordinator_bytes", 1e6) for name in SIDES})
        memory.set_title("Peak resident memory, coordinator's side")
        memory.set_ylabel("MB")


def setting(text: str) -> tuple[str, str]:
    """A variable of Flower's environment, from the command line."""
    name, found, value = text.partition("=")
    if not (name and found):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def main() -> int:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--models", nargs="+", choices=MODELS, help="default: all; --quick: two")
    flags.add_argument("--times", type=int, default=2, help="runs of each (default: %(default)s)")
    flags.add_argument("--flower", nargs="+", type=setting, default=[], metavar="NAME=VALUE")
    flags.add_argument("--flower-database", default="", metavar="FILE")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    models = options.models or list(QUICK if options.quick else ROUNDS)
    settings = FASTEST | dict(options.flower)
    try:
        flower = install(options.folder.resolve() / f"flower-{VERSION}", settings)
    except FlowerError as error:
        print(f"against_flower: {error}", file=sys.stderr)
        return 1
    console = wide_console()
    console.print(f"Flower's settings: {settings}, {options.flower_database or 'state in memory'}")
    found = compare(models, options, flower, console)
    console.print(table(models, found))
    if options.json:
        figures = {
            f"{model}/{name}/{key}": value
            for (model, name), seen in found.items()
            for key, value in seen.items()
        }
        for model, compared in both(models, found).items():
            figures |= {f"{model}/{key}": value for key, value in compared.items()}
        write_figures(options.json, figures)
    if options.plot:
        draw(models, found, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
