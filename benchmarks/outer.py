"""Outer steps and FedProx against plain averaging, on clusters of skewed labels.

    python benchmarks/outer.py [--quick] [--only METHOD ...] [--json FILE] [--plot FILE]

Federated training of an MLP on Fashion-MNIST, really trained; the coordinator's own round machine,
checks, merge and outer step, and the node's own trainer, in one process without a network. Every
method sees the same samples in the same order, and sends the same bytes. Each gets the config's
defaults and a few settings more; the best of them on the first seed runs on the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import Spread, parser, to_toml, wide_console, write_figures
from benchmarks.picture import picture
from benchmarks.robust.attacks import Attack
from benchmarks.robust.cluster import Outcome, play

NODES = 4
ALPHA = 0.3
ROUNDS, QUICK_ROUNDS = 20, 5
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
Values = Mapping[str, Any]
Setting = tuple[Values, Values]
"""The [outer] section of a run, and what its [training] has beside the common."""
Run = Callable[[Setting, int, int], Outcome]
"""A setting, the seed, the number of rounds -> how it ended."""


@dataclass(frozen=True)
class Method:
    """A row: its [outer] section and its part of [training], with what is tried beside defaults."""

    name: str
    outer: Values = field(default_factory=dict)
    training: Values = field(default_factory=dict)
    tried: tuple[Values, ...] = ()
    """Changes of ``outer``, or of ``training`` where that is what the method is about."""

    def settings(self, quick: bool) -> list[Setting]:
        """Those of each run on the first seed, the defaults first."""
        changes: list[Values] = [{}, *(() if quick else self.tried)]
        if self.training:
            return [(self.outer, {**self.training, **change}) for change in changes]
        return [({**self.outer, **change}, self.training) for change in changes]


def rates(*values: float) -> tuple[Values, ...]:
    """Learning rates to try."""
    return tuple({"learning_rate": value} for value in values)


SHORT: Values = {"learning_rate": 0.003, "betas": [0.5, 0.99]}
"""A first moment that forgets as soon as a momentum of 0.5 does."""
METHODS = (
    Method("average"),
    Method(
        "task arithmetic",
        {"learning_rate": 1.5},
        tried=rates(0.5, 2.0),
    ),
    Method(
        "LiNeS",
        {"layer_scaling": [0.5, 1.0]},
        tried=(
            {"layer_scaling": [1.0, 1.5]},
            {"layer_scaling": [1.0, 2.0]},
            {"layer_scaling": [0.5, 1.5]},
        ),
    ),
    Method(  # to see whether it is depth that counts
        "LiNeS turned round",
        {"layer_scaling": [1.5, 0.5]},
        tried=({"layer_scaling": [1.5, 1.0]}, {"layer_scaling": [2.0, 1.0]}),
    ),
    Method(
        "momentum",
        {"optimizer": "momentum"},
        tried=({"learning_rate": 0.3}, {"learning_rate": 0.1}, {"momentum": 0.5}),
    ),
    Method(
        "nesterov",
        {"optimizer": "nesterov"},
        tried=({"learning_rate": 0.3}, {"learning_rate": 0.1}, {"momentum": 0.5}),
    ),
    Method("adam", {"optimizer": "adam"}, tried=(*rates(0.03, 0.003, 0.001), SHORT)),
    Method("yogi", {"optimizer": "yogi"}, tried=(*rates(0.03, 0.003, 0.001), SHORT)),
    Method("FedProx", training={"proximal": 0.01}, tried=({"proximal": 0.1}, {"proximal": 1.0})),
)


def config(outer: Values, training: Values, seed: int, rounds: int, folder: str) -> dict[str, Any]:
    """A run of one row."""
    return {
        "name": "outer",
        "folder": folder,
        "seed": seed,
        "keep_bases": 1,
        "task": {"name": "partsum.shared.tasks:image_mlp", "options": {"widths": [128, 128]}},
        "data": {"clusters": "labels", "label_alpha": ALPHA},
        "parts": {"planner": "full", "count": NODES, "rounds": rounds, "local_epochs": 0.1},
        "training": {"batch_size": 64, "learning_rate": 1e-3, **training},
        "outer": outer,
        "handoff": {"enabled": False},
    }


@dataclass(frozen=True)
class Row:
    """A method at its best setting, with an outcome for each seed, and all that was tried."""

    method: Method
    best: str
    outcomes: tuple[Outcome, ...]
    tried: Mapping[str, float]

    def curve(self) -> list[float]:
        """Accuracy after each round, the mean over seeds."""
        return [fmean(at) for at in zip(*(outcome.curve for outcome in self.outcomes), strict=True)]


def said(outer: Values, training: Values) -> str:
    """A setting in words."""
    values = {**{k: v for k, v in outer.items() if k != "optimizer"}, **training}
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "defaults"


def once(setting: Setting, seed: int, rounds: int) -> Outcome:
    """One run, with nobody hostile."""
    with TemporaryDirectory() as folder:
        return play(to_toml(config(*setting, seed, rounds, folder)), Attack("none"))


def measure(method: Method, quick: bool, run: Run = once) -> Row:
    """Try a method's settings on the first seed, and the best of them on the others."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    first, *others = QUICK_SEEDS if quick else SEEDS
    found = [(run(s, first, rounds), s) for s in method.settings(quick)]
    outcome, best = max(found, key=lambda pair: pair[0].accuracy)
    return Row(
        method,
        said(*best),
        (outcome, *(run(best, seed, rounds) for seed in others)),
        {said(*setting): tried.accuracy for tried, setting in found},
    )


def rounds_to(curve: Sequence[float], accuracy: float) -> str:
    """After how many rounds a curve is first there."""
    return next((str(k + 1) for k, at in enumerate(curve) if at >= accuracy), "-")


def table(rows: Sequence[Row]) -> Table:
    """One row for each method; the goal of the last column but one is what averaging ended at."""
    goal = rows[0].curve()[-1]
    made = Table(title="outer optimizers, skewed labels", box=None, header_style="dim")
    for column in ("method", "best setting", "accuracy, %", "loss", f"rounds to {100 * goal:.1f}"):
        made.add_column(column)
    made.add_column("tried on the first seed: accuracy, %")
    for row in rows:
        made.add_row(
            row.method.name,
            row.best,
            Spread.of([outcome.accuracy for outcome in row.outcomes]).text(1, 100),
            Spread.of([outcome.loss for outcome in row.outcomes]).text(3),
            rounds_to(row.curve(), goal),
            "; ".join(f"{setting}: {100 * value:.1f}" for setting, value in row.tried.items()),
        )
    return made


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """Means over seeds by method, and all that was tried."""
    found = {}
    for row in rows:
        name = row.method.name
        found[f"{name}/accuracy"] = fmean(outcome.accuracy for outcome in row.outcomes)
        found[f"{name}/loss"] = fmean(outcome.loss for outcome in row.outcomes)
        found |= {f"{name}/tried/{setting}": value for setting, value in row.tried.items()}
        found |= {f"{name}/round {k + 1}": value for k, value in enumerate(row.curve())}
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG: accuracy by round, means over seeds."""
    with picture(path, width=8.0) as (axes,):
        for row in rows:
            curve = [100 * value for value in row.curve()]
            axes.plot(range(1, len(curve) + 1), curve, label=f"{row.method.name} ({row.best})")
        axes.set_xlabel("round")
        axes.set_ylabel("accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)


def chosen(names: Sequence[str] | None) -> list[Method]:
    """The methods of these names after the plain average; all where there is no name."""
    first, *others = METHODS
    known = [method.name for method in METHODS]
    if strange := set(names or ()) - set(known):
        raise SystemExit(f"no method {', '.join(sorted(strange))}; there are {', '.join(known)}")
    return [first, *(method for method in others if not names or method.name in names)]


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument(
        "--only", nargs="+", metavar="METHOD", help="average, and the methods of these names"
    )
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    began = time.monotonic()
    rows = [measure(method, options.quick) for method in chosen(options.only)]
    console = wide_console()
    console.print(table(rows))
    console.print(f"{time.monotonic() - began:.0f} s")
    if options.json:
        write_figures(options.json, figures(rows))
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
