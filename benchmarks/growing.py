"""What a warm start from smaller trained models gives, against a fresh base.

    python benchmarks/growing.py [--quick] [--json FILE]

An MLP on Fashion-MNIST. Small models of a quarter of its width are trained first; the base is fused
from four of them, or widened from one that was trained four times as long, and then trained like a
fresh one. All by the product's own coordinator and trainer, in one process without a network. The
small models cost something, too: a fresh base that trains as much longer is in the table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import Spread, parser, to_toml, wide_console, write_figures
from benchmarks.robust.attacks import Attack
from benchmarks.robust.cluster import play

MODELS = 4
WIDTH, LAYERS = 512, 3
SMALL = WIDTH // MODELS
INPUTS, OUTPUTS = 784, 10
ROUNDS = 4
"""Of each training: the base is evaluated after each."""
EPOCHS, QUICK_EPOCHS = 1.0, 0.1
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)


@dataclass(frozen=True)
class Way:
    """A row: what the base starts from, and how long it trains."""

    name: str
    start: Mapping[str, Any]
    extra_epochs: float = 0.0


def multiplications(width: int) -> int:
    """A sample's, forward."""
    return INPUTS * width + (LAYERS - 1) * width * width + width * OUTPUTS


PRICE = MODELS * multiplications(SMALL) / multiplications(WIDTH)
"""All small models' FLOPs for an epoch each, in epochs of the base."""


def ways(small: Sequence[str], long: str) -> list[Way]:
    """The rows. ``small`` are four models of an epoch, ``long`` is one of four epochs."""
    return [
        Way("fresh", {}),
        Way("fresh, and as much longer as the small models cost", {}, PRICE),
        Way("fused from four", {"models": list(small)}),
        Way("widened from one", {"models": [long], "grow": "widen"}),
        Way("widened from one, noise 0.1", {"models": [long], "grow": "widen", "noise": 0.1}),
        Way("widened from one, noise 0.5", {"models": [long], "grow": "widen", "noise": 0.5}),
    ]


def config(
    width: int, start: Mapping[str, Any], seed: int, epochs: float, folder: str
) -> dict[str, Any]:
    """A run of one node that trains the whole model on all data."""
    return {
        "name": "growing",
        "folder": folder,
        "seed": seed,
        "task": {"name": "partsum.shared.tasks:image_mlp", "options": {"widths": [width] * LAYERS}},
        "start": start,
        "parts": {
            "planner": "full",
            "count": 1,
            "rounds": ROUNDS,
            "local_epochs": epochs / ROUNDS,
        },
        "handoff": {"enabled": False},
    }


@dataclass(frozen=True)
class Outcome:
    """Accuracy and loss after each round, and the last base's file."""

    accuracy: tuple[float, ...]
    loss: float
    base: str


def once(width: int, start: Mapping[str, Any], seed: int, epochs: float, folder: Path) -> Outcome:
    """One training, in ``folder``."""
    folder.mkdir()
    outcome = play(to_toml(config(width, start, seed, epochs, str(folder))), Attack("none"))
    base = folder / "latest" / "bases" / f"base-{ROUNDS:05d}.safetensors"
    return Outcome(outcome.curve, outcome.loss, str(base))


def measure(seed: int, epochs: float) -> dict[str, Outcome]:
    """All rows of one seed, and the small models, by name."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            f"small model {k}": once(SMALL, {}, MODELS * seed + k, epochs, folder / f"small-{k}")
            for k in range(MODELS)
        }
        small = [outcome.base for outcome in found.values()]
        found["one of four times the epochs"] = long = once(
            SMALL, {}, MODELS * seed, MODELS * epochs, folder / "long"
        )
        for k, way in enumerate(ways(small, long.base)):
            trained = epochs * (1 + way.extra_epochs)
            found[way.name] = once(WIDTH, way.start, seed, trained, folder / f"way-{k}")
    return found


def table(found: Sequence[Mapping[str, Outcome]]) -> Table:
    """A row for each training, its mean and deviation over seeds."""
    made = Table(title="growing a base", box=None, header_style="dim")
    for column in ("start", *(f"{k + 1}/{ROUNDS}" for k in range(ROUNDS)), "loss at the end"):
        made.add_column(column)
    for name in found[0]:
        rows = [outcomes[name] for outcomes in found]
        accuracy = [
            Spread.of([row.accuracy[k] for row in rows]).text(2, 100) for k in range(ROUNDS)
        ]
        made.add_row(name, *accuracy, Spread.of([row.loss for row in rows]).text(3))
    return made


def figures(found: Sequence[Mapping[str, Outcome]]) -> dict[str, float]:
    """Means over seeds."""
    made = {}
    for name in found[0]:
        made[f"{name}/accuracy"] = fmean(outcomes[name].accuracy[-1] for outcomes in found)
        made[f"{name}/loss"] = fmean(outcomes[name].loss for outcomes in found)
    return made


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "").parse_args()
    began = time.monotonic()
    epochs = QUICK_EPOCHS if options.quick else EPOCHS
    found = [measure(seed, epochs) for seed in (QUICK_SEEDS if options.quick else SEEDS)]
    console = wide_console()
    console.print(table(found))
    console.print(f"the small models cost {PRICE:.2f} epochs of the base by FLOPs")
    console.print(f"{time.monotonic() - began:.0f} s")
    if options.json:
        write_figures(options.json, figures(found))


if __name__ == "__main__":
    main()
