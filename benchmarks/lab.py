"""The lab: one question about the method at a time, answered by the simulator.

    python benchmarks/lab.py stages --tasks mlp vit --seeds 2

Prints, for each recipe, when its merged base reaches the target, how good it is at the hand-off and
at the end. The target is the best that data-parallel training of any learning rate and batch of the
question `rivals` has at half of the budget, on the same seeds; times are shares of the budget, so
0.25 is half of the time that data-parallel training takes. Runs are kept: remove their folder after
a change that moves results. Conclusions are in docs/lab-notes.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script

from benchmarks.accuracy.questions import BENCHES, QUESTIONS, Bench
from benchmarks.accuracy.simulator import Mark, Recipe, simulate
from benchmarks.harness import Spread, wide_console

_FOLDER = Path("runs/benchmarks/lab")


@dataclass(frozen=True)
class Run:
    """One recipe on one seed: its curve."""

    recipe: Recipe
    marks: tuple[Mark, ...]

    def time(self, mark: Mark) -> float:
        """When that was, as a share of the budget."""
        stages = self.recipe.stages
        return sum(s.share for s in stages[: mark.stage]) + stages[mark.stage].share * mark.done

    def at(self, time: float) -> Mark:
        """The last mark up to that time."""
        return [mark for mark in self.marks if self.time(mark) <= time + 1e-9][-1]

    def reaches(self, field: str, target: float) -> float:
        """When a mark's loss or accuracy first is as good as the target; inf for never.

        Between two marks a straight line is drawn.
        """
        sign = -1 if field == "loss" else 1
        before: tuple[float, float] | None = None
        for mark in self.marks:
            time, value = self.time(mark), sign * float(getattr(mark, field))
            if value >= sign * target:
                if before is None:
                    return time
                part = (sign * target - before[1]) / max(value - before[1], 1e-12)
                return before[0] + part * (time - before[0])
            before = time, value
        return math.inf

    @property
    def merged(self) -> Mark | None:
        """The last mark before the whole is trained."""
        before = [mark for mark in self.marks if self.recipe.stages[mark.stage].parts > 1]
        return before[-1] if before else None


def run(bench: Bench, recipe: Recipe, seed: int, folder: Path) -> Run:
    """Simulate, or take what is kept of the same run."""
    said = re.sub(r"<function (\w+) at \w+>", r"\1", f"{bench.load} {recipe} {seed}")
    path = folder / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"
    if not path.exists():
        marks, _ = simulate(bench.load, recipe, seed)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {"run": said, "marks": [asdict(mark) for mark in marks]}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    marks = [Mark(**mark) for mark in json.loads(path.read_text(encoding="utf-8"))["marks"]]
    return Run(recipe, tuple(marks))


def targets(rivals: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """By field, the best mean over seeds that any rival has at half of the budget."""
    halves = [[r.at(0.5) for r in runs] for runs in rivals.values()]
    return {
        "loss": min(Spread.of([mark.loss for mark in marks]).mean for marks in halves),
        "accuracy": max(Spread.of([mark.accuracy for mark in marks]).mean for marks in halves),
    }


def table(title: str, found: Mapping[str, Sequence[Run]], target: Mapping[str, float]) -> Table:
    """One line for each recipe."""
    said = f"{target['accuracy']:.2%}, loss {target['loss']:.3f}"
    made = Table(title=f"{title}; target {said}", box=None)
    made.add_column("recipe")
    columns = "time to accuracy", "to loss", "handed off: %", "loss", "end: %", "loss"
    for column in columns:
        made.add_column(column, justify="right")
    for name, runs in found.items():
        merged = [run.merged for run in runs if run.merged]
        ends = [run.marks[-1] for run in runs]
        made.add_row(
            name,
            _text([run.reaches("accuracy", target["accuracy"]) for run in runs]),
            _text([run.reaches("loss", target["loss"]) for run in runs]),
            _text([100 * mark.accuracy for mark in merged], 2),
            _text([mark.loss for mark in merged]),
            _text([100 * mark.accuracy for mark in ends], 2),
            _text([mark.loss for mark in ends], 4),
        )
    return made


def _text(values: Sequence[float], digits: int = 3) -> str:
    """Mean and deviation; how many never got there, where some did not."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values):
        return f"never ({len(values) - len(finite)} of {len(values)})"
    return Spread.of(finite).text(digits) if finite else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask the questions; returns the exit code."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("questions", nargs="+", choices=QUESTIONS)
    flags.add_argument("--tasks", nargs="+", choices=BENCHES, default=list(BENCHES))
    flags.add_argument("--only", default="", metavar="TEXT", help="recipes whose names have it")
    flags.add_argument("--seeds", type=int, default=2, help="how many (default: %(default)s)")
    flags.add_argument("--budget", type=float, metavar="T", help="in place of the task's own")
    flags.add_argument("--folder", type=Path, default=_FOLDER, help="(default: %(default)s)")
    options = flags.parse_args(arguments)
    torch.set_num_threads(1)  # results do not depend on the number of cores then
    console = wide_console()
    for task in options.tasks:
        bench = BENCHES[task]
        if options.budget:
            bench = replace(bench, load=replace(bench.load, budget=options.budget))
        target = targets(ask(bench, "rivals", "", options.seeds, options.folder))
        for question in options.questions:
            found = ask(bench, question, options.only, options.seeds, options.folder)
            title = f"{question}: {task}, T = {bench.load.budget:g}, {options.seeds} seed(s)"
            console.print(table(title, found, target), soft_wrap=True)
    return 0


def ask(bench: Bench, question: str, only: str, seeds: int, folder: Path) -> dict[str, list[Run]]:
    """The runs of a question's recipes whose names have ``only`` in them, by name."""
    return {
        name: [run(bench, recipe, seed, folder) for seed in range(seeds)]
        for name, recipe in QUESTIONS[question](bench).items()
        if only in name
    }


if __name__ == "__main__":
    sys.exit(main())
