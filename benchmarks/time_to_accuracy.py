"""How soon, and for how many bytes, parts and a hand-off reach what data-parallel training reaches.

python benchmarks/time_to_accuracy.py [--quick] [--tasks mlp vit gpt] [--methods parts dp_small ...]
                                      [--seeds 3] [--json FILE] [--plot FILE]

Four simulated nodes in one process, by the product's own functions (see accuracy/simulator.py).
Every method gets the same FLOPs a node and as many learning rates to choose from, on the first
seed. Runs are kept: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script

from benchmarks.accuracy import plot, shelf, stopwatch, tables
from benchmarks.accuracy.costs import Spent, federation_costs, recipe_costs
from benchmarks.accuracy.curves import Comparison, Curve
from benchmarks.accuracy.federation import Federation
from benchmarks.accuracy.methods import CONTESTS, METHODS, Contest, Method, Plan, quick
from benchmarks.accuracy.simulator import Mark
from benchmarks.harness import parser, wide_console, write_figures

from partsum.shared.errors import EXIT_STOPPED, PartsumError

RIVALS = ("dp_small", "dp_tiny", "dp_large")  # the target is theirs, so they always run
_TURNS = 7  # of the stopwatch


def compare(
    contest: Contest, methods: Sequence[Method], seeds: int, folder: Path, console: Console
) -> Comparison:
    """Tune every method on the first seed, run its best learning rate on the others, count costs.

    All methods are tuned before the first gets its other seeds.
    """
    curves, rivals = [], []
    tuned = {method: _tune(contest, method, folder, console) for method in methods}
    for method, first in tuned.items():
        tried = {rate: contest.score(marks[-1]) for rate, marks in first.items()}
        best = max(tried, key=lambda rate: tried[rate])
        runs = [_run(contest, method, best, seed, folder, console) for seed in range(seeds)]
        curves += _curves(contest, method, best, runs, tried)
        if method.name in RIVALS:
            for rate, marks in first.items():
                shown = runs if rate == best else [marks]
                rivals += _curves(contest, method, rate, shown, tried)
    steps = [step for curve in curves for spent in curve.spent for step in spent.steps]
    kept = folder / contest.load.name / "steps.json"
    times = stopwatch.measure(contest.load, steps, _TURNS, kept)
    return Comparison(contest.load, times, curves, rivals)


def _tune(
    contest: Contest, method: Method, folder: Path, console: Console
) -> dict[float, Sequence[Mark]]:
    """Every learning rate's run on the first seed."""
    return {
        rate: _run(contest, method, rate, 0, folder, console)
        for rate in method.rates(contest.sizes)
    }


def _curves(
    contest: Contest,
    method: Method,
    rate: float,
    runs: Sequence[Sequence[Mark]],
    tried: Mapping[float, float],
) -> list[Curve]:
    """The method's runs of one learning rate; twice where one host may do the hand-off."""
    plan = method.plan(contest.sizes, rate)
    titles = {method.name: method.title, f"{method.name}_single_host": method.single_host}
    return [
        Curve(
            name,
            title,
            rate,
            _spent(contest, plan, runs[0], name != method.name),
            runs,
            contest.score,
            tried,
        )
        for name, title in titles.items()
        if title
    ]


def _run(
    contest: Contest, method: Method, rate: float, seed: int, folder: Path, console: Console
) -> Sequence[Mark]:
    name = contest.load.name
    path = folder / name / method.name / f"rate-{rate:g}" / f"seed-{seed}.json"
    marks, is_new = shelf.run(contest.load, method.plan(contest.sizes, rate), seed, path)
    if is_new:
        last = marks[-1]
        said = f"accuracy {last.accuracy:.2%}, loss {last.loss:.4f}"
        console.print(f"{name} {method.name} lr {rate:g} seed {seed}: {said}", highlight=False)
    return marks


def _spent(contest: Contest, plan: Plan, marks: Sequence[Mark], alone: bool) -> list[Spent]:
    if isinstance(plan, Federation):
        return federation_costs(contest.load, plan, marks)
    return recipe_costs(contest.load, plan, marks, alone)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    flags = parser(__doc__ or "")
    names = [method.name for method in METHODS]
    flags.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    flags.add_argument("--tasks", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    flags.add_argument(
        "--methods", nargs="+", choices=names, default=names, help="beside data-parallel"
    )
    flags.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves there")
    options = flags.parse_args(arguments)
    torch.set_num_threads(1)  # steps of two threads cannot be told from what else the cores do
    console = wide_console()
    folder: Path = options.folder / ("quick" if options.quick else "full") / "time_to_accuracy"
    chosen = [m for m in METHODS if m.name in {*options.methods, *RIVALS}]
    found: dict[str, float] = {}
    drawn: list[tuple[Comparison, str]] = []
    try:
        for name in options.tasks:
            contest = quick(CONTESTS[name]) if options.quick else CONTESTS[name]
            seeds = 1 if options.quick else options.seeds
            compared = compare(contest, chosen, seeds, folder, console)
            console.print(tables.outcomes(contest, compared), soft_wrap=True)
            console.print(tables.targets(contest, compared), soft_wrap=True)
            found |= tables.figures(contest, compared)
            drawn.append((compared, contest.by))
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
