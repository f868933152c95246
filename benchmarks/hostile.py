"""One hostile node of five: every merge rule against every attack.

    python benchmarks/hostile.py [--quick] [--json FILE] [--plot FILE]

Federated averaging of a small MLP on scikit-learn's digits, really trained; the coordinator's own
round machine, checks and merge, and the node's own trainer, in one process. The hostile node trains
like the others and tampers with what it sends, or trains on wrong labels. That an update must be
finite is checked always; how long it may be (`merge.norm_bound`) only in the row that says so, so
that the others show what the rule alone can do.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import Spread, parser, to_toml, wide_console, write_figures
from benchmarks.robust.attacks import ATTACKS
from benchmarks.robust.cluster import Outcome, play
from benchmarks.robust.plot import draw

NODES = 5
Section = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """A row: the [merge] section of its config."""

    name: str
    merge: Section


RULES = (
    Rule("mean", {"rule": "mean", "norm_bound": 0.0}),
    Rule("mean, norm bound 10", {"rule": "mean", "norm_bound": 10.0}),
    Rule("norm_clip", {"rule": "norm_clip", "norm_bound": 0.0}),
    Rule("trimmed_mean", {"rule": "trimmed_mean", "norm_bound": 0.0}),
    Rule("median", {"rule": "median", "norm_bound": 0.0}),
    Rule("krum", {"rule": "krum", "norm_bound": 0.0}),
    Rule("multi_krum", {"rule": "multi_krum", "norm_bound": 0.0}),
)
DATA: dict[str, Section] = {
    "iid": {"clusters": "iid"},
    "skewed": {"clusters": "labels", "label_alpha": 0.3},
}


def config(rule: Rule, data: Section, seed: int, rounds: int, folder: str) -> dict[str, Any]:
    """A run of one row."""
    return {
        "name": "hostile",
        "folder": folder,
        "seed": seed,
        "keep_bases": 1,
        "task": {"name": "partsum.shared.tasks:digits", "options": {"widths": [64, 64]}},
        "data": data,
        "parts": {
            "planner": "full",
            "count": NODES,
            "rounds": rounds,
            "local_epochs": 2.0,
            "evaluate_every": 0,
        },
        "training": {"batch_size": 32, "learning_rate": 4e-3},
        "merge": rule.merge,
        "handoff": {"enabled": False},
    }


Cells = dict[tuple[str, str], list[Outcome]]
"""(rule, attack) -> an outcome for each seed."""


def measure(data: Section, seeds: Sequence[int], rounds: int) -> Cells:
    """Every rule against every attack."""
    cells: Cells = {}
    for rule in RULES:
        for attack in ATTACKS:
            for seed in seeds:
                with TemporaryDirectory() as folder:
                    text = to_toml(config(rule, data, seed, rounds, folder))
                    cells.setdefault((rule.name, attack.name), []).append(play(text, attack))
    return cells


def said(outcomes: Sequence[Outcome]) -> str:
    """Accuracy in %, and what was refused on the way."""
    refused = sum((outcome.refused for outcome in outcomes), Counter[str]())
    text = Spread.of([outcome.accuracy for outcome in outcomes]).text(1, 100)
    kinds = ", ".join(f"{kind} {count / len(outcomes):.3g}" for kind, count in refused.items())
    found = all(outcome.benched for outcome in outcomes)
    return text + (f" ({kinds}{', benched' if found else ''})" if kinds else "")


def table(name: str, cells: Cells) -> Table:
    """Rules down, attacks across."""
    made = Table(title=f"{name}: accuracy, % (refused updates a run)", box=None, header_style="dim")
    for column in ("rule", *(attack.name for attack in ATTACKS)):
        made.add_column(column)
    for rule in RULES:
        made.add_row(rule.name, *(said(cells[rule.name, attack.name]) for attack in ATTACKS))
    return made


def figures(name: str, cells: Cells) -> dict[str, float]:
    """Means over seeds, by data/rule/attack."""
    found = {}
    for (rule, attack), outcomes in cells.items():
        found[f"{name}/{rule}/{attack}/accuracy"] = Spread.of([o.accuracy for o in outcomes]).mean
        refused = Spread.of([float(o.refused.total()) for o in outcomes])
        found[f"{name}/{rule}/{attack}/refused"] = refused.mean
    return found


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    seeds, rounds = ((0,), 3) if options.quick else ((0, 1, 2), 8)
    console = wide_console()
    measured: dict[str, float] = {}
    drawn: list[tuple[str, Cells]] = []
    began = time.monotonic()
    for name, data in DATA.items():
        cells = measure(data, seeds, rounds)
        console.print(table(name, cells))
        measured |= figures(name, cells)
        drawn.append((name, cells))
    console.print(f"{time.monotonic() - began:.0f} s")
    if options.json:
        write_figures(options.json, measured)
    if options.plot:
        names = [attack.name for attack in ATTACKS]
        draw(drawn, [rule.name for rule in RULES], names, options.plot)


if __name__ == "__main__":
    main()
