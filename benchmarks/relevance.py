"""ARD on an MLP, and which units to keep: what pruning costs, and how to choose what is kept.

    python benchmarks/relevance.py [--quick] [--only weights units rounds] [--shapes small wide]
        [--seeds N] [--json FILE] [--plot FILE]

On Fashion-MNIST, really trained, in one process. *Weights*: sparse variational dropout, the weights
that are noise pruned, the others trained on; beside it a dense model of as many epochs. *Units*:
the quarter of each group's units that some score calls strong, weak, or both, cut out and trained
on alone; beside it units at random, and a fresh model of that width. *Rounds*: parts of mode
residual that share strong units, deal them out, or are drawn at random.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import Spread, parser, to_toml, wide_console, write_figures
from benchmarks.picture import picture
from benchmarks.robust.attacks import Attack
from benchmarks.robust.cluster import play

from partsum.coordinator.base import seeded_model
from partsum.coordinator.planner.selection import select_units
from partsum.coordinator.relevance.ard import THRESHOLD, mask_weights, with_ard, without_ard
from partsum.coordinator.relevance.probing import activation_scores, taylor_scores
from partsum.coordinator.relevance.scores import ard_scores, magnitude_scores
from partsum.coordinator.relevance.training import Lesson, train_whole
from partsum.shared.config.study import Selection
from partsum.shared.part import cut_module, fresh_module
from partsum.shared.task import Samples, Task, evaluate
from partsum.shared.tasks.images import image_mlp
from partsum.shared.width import find_widths

SHAPES = {"small": (300, 100), "wide": (640, 640, 640)}
KEEP = 0.25
NODES, ROUNDS = 4, 8
SEEDS, QUICK_SEEDS = 3, 1
LESSON = Lesson(10, 128, 2e-3, (0.9, 0.99), 0.01, 0.01, 0.3, "float32", 0)


@dataclass
class Bench:
    """The task's data, read once, where to train, and the figures: name -> one for each seed."""

    task: Task
    train: Samples
    validation: Samples
    device: torch.device
    found: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, widths: Sequence[int]) -> Bench:
        """On a GPU where there is one."""
        task = image_mlp(widths=widths)
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        return cls(task, task.train(), task.validation(), device)

    def note(self, name: str, value: float) -> None:
        """One seed's figure."""
        self.found.setdefault(name, []).append(value)

    def accuracy(self, model: nn.Module) -> float:
        """On validation data, which also chose nothing here."""
        return evaluate(model.eval(), self.task, self.validation, self.device).accuracy

    def trained(
        self, model: nn.Module, lesson: Lesson, keep: dict[str, Tensor] | None = None
    ) -> nn.Module:
        """The model itself, trained; weights that are not kept stay 0."""
        after = (lambda: mask_weights(model, keep)) if keep else lambda: None
        train_whole(model, self.task, self.train, lesson, None, after_step=after)
        return model


def lesson(epochs: float, seed: int) -> Lesson:
    """As all models here are trained, from the start or from what another lesson left."""
    return replace(LESSON, epochs=epochs, seed=seed)


def weights(bench: Bench, seed: int, epochs: int, more: int) -> None:
    """Dense for epochs + more; ARD for epochs, pruned, tuned for the others."""
    dense = seeded_model(bench.task, seed).to(bench.device)
    bench.note("dense", bench.accuracy(bench.trained(dense, lesson(epochs + more, seed))))
    model = seeded_model(bench.task, seed).to(bench.device)
    ard = with_ard(model)
    train_whole(model, bench.task, bench.train, lesson(epochs, seed), ard)
    bench.note("ard", bench.accuracy(model))
    keep = {name: (found <= THRESHOLD).detach() for name, found in ard.log_alphas().items()}
    kept = sum(int(mask.sum()) for mask in keep.values())
    bench.note("noise", 1 - kept / sum(mask.numel() for mask in keep.values()))
    pruned = without_ard(ard, THRESHOLD)
    bench.note("pruned", bench.accuracy(pruned))
    tuned = bench.trained(pruned, lesson(more, seed), keep)
    bench.note("tuned", bench.accuracy(tuned))


def units(bench: Bench, seed: int, epochs: float, more: int) -> None:
    """Every choice of a quarter of the units, cut out of one model, before and after tuning."""
    model = seeded_model(bench.task, seed).to(bench.device)
    widths = find_widths(model)
    ard = with_ard(model)
    train_whole(model, bench.task, bench.train, lesson(epochs, seed), ard)
    alphas = {name: found.detach() for name, found in ard.log_alphas().items()}
    without_ard(ard)
    bench.note("whole", bench.accuracy(model))
    scores = {
        "ard": ard_scores(alphas, widths),
        "magnitude": magnitude_scores(model, widths),
        "taylor": taylor_scores(model, widths, bench.task, bench.train, seed),
        "activation": activation_scores(model, widths, bench.train, seed),
    }
    ways: list[tuple[str, Selection]] = [("ard", "random")]
    ways += [(name, how) for name in scores for how in _CHOSEN]
    for name, how in ways:
        row = "random" if how == "random" else f"{name} {how}"
        part = select_units(scores[name], widths, KEEP, how, seed)
        narrow = cut_module(model, widths, part).to(bench.device)
        bench.note(f"{row}/cut", bench.accuracy(narrow))
        bench.note(f"{row}/tuned", bench.accuracy(bench.trained(narrow, lesson(more, seed))))
    fresh = fresh_module(cut_module(model, widths, part), seed).to(bench.device)
    bench.note("fresh/tuned", bench.accuracy(bench.trained(fresh, lesson(more, seed))))


_CHOSEN: tuple[Selection, ...] = ("strong", "strong_weak", "weak")

PLANS: dict[str, dict[str, Any]] = {
    "complement": {},
    "relevance, shared 0": {"shared": 0.0},
    "relevance, shared 0.1": {"shared": 0.1},
    "relevance, shared 0.25": {"shared": 0.25},
}


def rounds(bench: Bench, seed: int, widths: Sequence[int], count: int) -> None:
    """Parts of mode residual by planner; relevance has an epoch on the coordinator before."""
    for name, relevance in PLANS.items():
        planner = "relevance" if relevance else "complement"
        config = {
            "name": "relevance",
            "seed": seed,
            "keep_bases": 1,
            "task": {"name": "partsum.shared.tasks:image_mlp", "options": {"widths": list(widths)}},
            "parts": {
                "planner": planner,
                "mode": "residual",
                "count": NODES,
                "rounds": count,
                "local_epochs": 0.25,
            },
            "training": {"batch_size": 64, "learning_rate": 1e-3},
            **({"relevance": {"score": "ard", "epochs": 1.0, **relevance}} if relevance else {}),
            "handoff": {"enabled": False},
        }
        with TemporaryDirectory() as folder:
            outcome = play(to_toml({**config, "folder": folder}), Attack("none"))
        bench.note(f"{name}/accuracy", outcome.accuracy)
        bench.note(f"{name}/loss", outcome.loss)
        bench.note(f"{name}/first", outcome.curve[0])


Figures = dict[str, dict[str, list[float]]]
"""Experiment and shape -> name -> one figure for each seed."""


def measure(quick: bool, only: Sequence[str], shapes: Sequence[str], seeds: int) -> Figures:
    """All that was asked for, from seed 0 on."""
    found: Figures = {}
    for experiment in only:
        for shape in shapes:
            bench = Bench.of(SHAPES[shape])
            for seed in range(seeds):
                once(experiment, bench, seed, SHAPES[shape], quick)
            sizes = "-".join(map(str, (784, *SHAPES[shape], 10)))
            found[f"{experiment}, {sizes}"] = bench.found
    return found


def once(experiment: str, bench: Bench, seed: int, widths: Sequence[int], quick: bool) -> None:
    """One seed of one experiment."""
    match experiment:
        case "weights":
            weights(bench, seed, *((1, 1) if quick else (10, 20)))
        case "units":
            units(bench, seed, *((0.5, 1) if quick else (2, 3)))
        case "rounds":
            rounds(bench, seed, widths, 1 if quick else ROUNDS)


def table(title: str, found: dict[str, list[float]]) -> Table:
    """A row for each name, a column for what comes after the slash in it."""
    columns = list(dict.fromkeys(name.partition("/")[2] for name in found))
    made = Table(title=title, box=None, header_style="dim")
    made.add_column("")
    for column in columns:
        made.add_column(column or "%", justify="right")
    for row in dict.fromkeys(name.partition("/")[0] for name in found):
        cells = [_cell(found, f"{row}/{column}".rstrip("/")) for column in columns]
        made.add_row(row, *cells)
    return made


def _cell(found: dict[str, list[float]], name: str) -> str:
    if name not in found:
        return ""
    digits, factor = (3, 1) if name.endswith("/loss") else (2, 100)
    return Spread.of(found[name]).text(digits, factor)


def draw(found: Figures, path: Path) -> None:
    """Write a PNG: what a quarter of the units reaches, by how it was chosen."""
    kept = next(figures for title, figures in found.items() if title.startswith("units"))
    with picture(path, width=8.0) as (axes,):
        rows = [name for name in kept if name.endswith("/tuned")]
        spreads = [Spread.of(kept[name]) for name in rows]
        axes.barh(
            [name.partition("/")[0] for name in rows],
            [100 * spread.mean for spread in spreads],
            xerr=[100 * spread.deviation for spread in spreads],
            color="#4c78a8",
        )
        axes.set_xlim(left=100 * min(spread.mean - 3 * spread.deviation for spread in spreads) - 1)
        axes.set_xlabel("accuracy of a quarter of the units, trained on, %")
        axes.invert_yaxis()


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    experiments = ("weights", "units", "rounds")
    flags.add_argument("--only", nargs="+", choices=experiments, default=list(experiments))
    shapes = list(SHAPES)
    flags.add_argument("--shapes", nargs="+", choices=shapes, default=["small"])
    flags.add_argument("--seeds", type=int, metavar="N", help=f"default: {SEEDS}, quick: 1")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    began = time.monotonic()
    seeds = options.seeds or (QUICK_SEEDS if options.quick else SEEDS)
    found = measure(options.quick, options.only, options.shapes, seeds)
    console = wide_console()
    for title, figures in found.items():
        console.print(table(title, figures))
    console.print(f"{time.monotonic() - began:.0f} s")
    if options.json:
        means = {f"{t}/{n}": Spread.of(v).mean for t, fs in found.items() for n, v in fs.items()}
        write_figures(options.json, means)
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
