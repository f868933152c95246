"""Accuracy for the same FLOPs: parts and a hand-off against what else one could do with four nodes.

python benchmarks/time_to_accuracy.py [--quick] [--json FILE] [--plot FILE]

Everything runs through the real coordinator, node processes and DeepSpeed job, on loopback.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script

from benchmarks.accuracy import methods, plot
from benchmarks.accuracy.methods import Choice, Method, Workload
from benchmarks.accuracy.outcomes import Outcome, try_out
from benchmarks.harness import Spread, parser, wide_console, write_figures

from partsum.shared.errors import EXIT_STOPPED, PartsumError

MLP = Workload(
    name="mlp",
    task="partsum.shared.tasks:image_mlp",
    options={"widths": [640, 640, 640]},
    part_options={"widths": [160, 160, 160]},
    budget=0.5,
)
VIT = Workload(
    name="vit",
    task="partsum.shared.tasks:image_vit",
    options={"width": 96, "heads": 8, "layers": 4},
    part_options={"width": 24, "heads": 2, "layers": 4},
    budget=0.25,
    evaluate_every=2,  # ten thousand images cost as much as a fifth of the whole budget
    evaluations=1,
)

MLP_METHODS = (
    Method(
        "parts",
        "parts + hand-off",
        methods.parts_then_handoff,
        (Choice(1e-3, 64), Choice(2e-3, 64), Choice(1e-3, 128)),
    ),
    Method(
        "dp256",
        "data-parallel, batch 256",
        methods.data_parallel,
        (Choice(2e-3, 256), Choice(4e-3, 256), Choice(8e-3, 256)),
        nodes=0,
    ),
    Method(
        "dp64",
        "data-parallel, batch 64",
        methods.data_parallel,
        (Choice(1e-3, 64), Choice(2e-3, 64)),
        nodes=0,
    ),
    Method(
        "fedavg",
        "FedAvg of the whole model",
        methods.federated_averaging,
        (Choice(1e-3, 64, rounds=5), Choice(2e-3, 64, rounds=5), Choice(1e-3, 64, rounds=10)),
    ),
    Method("ensemble", "parts, never merged", methods.never_merged, (Choice(1e-3),)),
    Method(
        "cloned",
        "one slice, cloned + hand-off",
        methods.one_slice,
        (Choice(2e-3, 64), Choice(4e-3, 64), Choice(8e-3, 64)),
        cloned=True,
    ),
)
VIT_METHODS = (
    Method(
        "parts",
        "parts + hand-off, plain norms",
        methods.parts_then_handoff,
        (Choice(1e-3, 32), Choice(2e-3, 32)),
    ),
    Method(
        "dp32",
        "data-parallel, batch 32",
        methods.data_parallel,
        (Choice(1e-3, 32), Choice(2e-3, 32)),
        nodes=0,
    ),
    Method(
        "grouped",
        "parts + hand-off, grouped norms",
        methods.parts_then_handoff,
        (Choice(1e-3, 32, norms="grouped"), Choice(2e-3, 32, norms="grouped")),
    ),
    Method("dp64", "data-parallel, batch 64", methods.data_parallel, (Choice(1e-3, 64),), nodes=0),
    Method(
        "dp128", "data-parallel, batch 128", methods.data_parallel, (Choice(1e-3, 128),), nodes=0
    ),
)
_QUICK = {"parts", "dp256", "dp32", "fedavg", "ensemble", "cloned"}
EXPERIMENTS = {"mlp": (MLP, MLP_METHODS), "vit": (VIT, VIT_METHODS)}


@dataclass(frozen=True)
class Result:
    """A method with the choice that was best on the first seed, and its outcome on all seeds."""

    method: Method
    choice: Choice
    tried: Mapping[Choice, Outcome]
    """On the first seed."""
    outcomes: tuple[Outcome, ...]

    def spread(self, field: str) -> Spread:
        """Of one of the outcomes' fields."""
        return Spread.of([float(getattr(outcome, field)) for outcome in self.outcomes])


def compare(
    load: Workload, tried: Sequence[Method], seeds: int, folder: Path, console: Console
) -> list[Result]:
    """Tune every method on the first seed, then run its best choice on the others."""
    best: list[tuple[Method, Choice, dict[Choice, Outcome]]] = []
    for method in tried:
        first = {}
        for choice in method.choices:
            first[choice] = try_out(load, method, choice, 0, folder)
            _say(console, load, method, choice, first[choice])
        best.append((method, max(first, key=lambda c: first[c].accuracy), first))
    results = []
    for method, choice, first in best:
        outcomes = [first[choice]]
        for seed in range(1, seeds):
            outcomes.append(try_out(load, method, choice, seed, folder))
            _say(console, load, method, choice, outcomes[-1])
        results.append(Result(method, choice, first, tuple(outcomes)))
    return results


def _say(
    console: Console, load: Workload, method: Method, choice: Choice, outcome: Outcome
) -> None:
    console.print(
        f"{load.name} {method.name} {choice.label()} seed {outcome.seed}: "
        f"{outcome.accuracy:.2%}, loss {outcome.loss:.4f}, "
        f"{outcome.train_seconds:.0f} s of training, {outcome.wall_seconds:.0f} s in all",
        highlight=False,
        soft_wrap=True,
    )


def table(load: Workload, results: Sequence[Result]) -> Table:
    """One line for each method."""
    seeds = len(results[0].outcomes)
    made = Table(title=f"{load.name}, T = {load.budget:g}, {seeds} seed(s)", box=None)
    made.add_column("method")
    columns = "accuracy %", "loss", "at hand-off %", "T", "training s", "wall s"
    for column in (*columns, "MB a node", "MB a round", "peak MB", "choice"):
        made.add_column(column, justify="right")
    for result in results:
        starts = [o.start_accuracy for o in result.outcomes if o.start_accuracy is not None]
        made.add_row(
            result.method.title,
            result.spread("accuracy").text(2, 100),
            result.spread("loss").text(3),
            Spread.of(starts).text(2, 100) if starts else "",
            result.spread("time").text(3),
            result.spread("train_seconds").text(0),
            result.spread("wall_seconds").text(0),
            f"{result.spread('node_bytes').mean / 1e6:,.1f}",
            f"{result.spread('round_bytes').mean / 1e6:.2f}",
            f"{result.spread('peak_memory_bytes').mean / 1e6:.0f}",
            f"lr {result.choice.rate:g}, batch {result.choice.batch}",
        )
    return made


def figures(load: Workload, results: Sequence[Result]) -> dict[str, float]:
    """Means over seeds by name, and by how many points parts are ahead of each other method."""
    found: dict[str, float] = {f"{load.name}/seeds": len(results[0].outcomes)}
    fields = ("accuracy", "loss", "time", "node_bytes", "round_bytes", "train_seconds")
    for result in results:
        name = f"{load.name}/{result.method.name}"
        for field in (*fields, "wall_seconds", "peak_memory_bytes"):
            found[f"{name}/{field}"] = result.spread(field).mean
        found[f"{name}/accuracy_deviation"] = result.spread("accuracy").deviation
        ahead = results[0].spread("accuracy").mean - result.spread("accuracy").mean
        if result is not results[0]:
            found[f"{load.name}/points_over_{result.method.name}"] = 100 * ahead
    return found


def quick(load: Workload, tried: Sequence[Method]) -> tuple[Workload, tuple[Method, ...]]:
    """A fifth of the budget, fewer tokens for it, and one choice for the telling methods."""
    options = {**load.options, "patch": 7} if "layers" in load.options else load.options
    small = replace(load, budget=load.budget / 5, options=options, evaluations=0)
    told = [method for method in tried if method.name in _QUICK]
    few = [replace(method, choices=method.choices[:1]) for method in told]
    return small, tuple(few)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    flags = parser(__doc__ or "")
    flags.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    flags.add_argument("--models", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    flags.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy curves there")
    options = flags.parse_args(arguments)
    console, drawn = wide_console(), []
    found: dict[str, float] = {}
    folder: Path = options.folder / ("quick" if options.quick else "full") / "time_to_accuracy"
    try:
        for name in options.models:
            load, tried = EXPERIMENTS[name]
            if options.quick:
                load, tried = quick(load, tried)
            seeds = 1 if options.quick else options.seeds
            results = compare(load, tried, seeds, folder, console)
            console.print(table(load, results), soft_wrap=True)
            found |= figures(load, results)
            drawn.append((load, [(r.method.title, r.outcomes) for r in results]))
    except PartsumError as error:
        print(f"time_to_accuracy: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the runs that are done", file=sys.stderr)
        return EXIT_STOPPED
    if options.json:
        write_figures(options.json, found)
    if options.plot:
        plot.draw(drawn, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
