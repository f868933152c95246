"""Training ahead: what a round costs with and without, over slow links, and the accuracy.

    python benchmarks/overlap.py [--quick] [--json FILE] [--plot FILE]

Real coordinator and node processes, each node behind a link of its own (a TCP proxy on loopback
that lets so many Mbit/s through each way), Fashion-MNIST MLP, the same number of samples with and
without `training.ahead`. Seconds a round are the median over the rounds after the first, from one
commit to the next.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs as a script

from benchmarks.harness import (
    Spread,
    finished,
    parser,
    to_toml,
    wide_console,
    write_figures,
)
from benchmarks.link import slow_link
from tests.cluster import Cluster

from partsum.coordinator.summary import Summary, read_summary
from partsum.shared.config import parse_config
from partsum.shared.errors import PartsumError

DATA = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Case:
    """Parts by one planner (complement: mode block), on so many nodes, over such links."""

    name: str
    planner: str
    nodes: int
    megabits: float

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name}, {self.nodes} nodes, {self.megabits:g} Mbit/s"

    @property
    def key(self) -> str:
        """In figures."""
        return f"{self.name.replace(' ', '_')}_{self.nodes}nodes_{self.megabits:g}mbit"


CASES = (
    Case("whole model", "full", 2, 50),
    Case("whole model", "full", 2, 200),
    Case("whole model", "full", 4, 50),
    Case("mode block", "complement", 2, 50),
)


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    summary: Summary
    ahead: float  # the share of all samples that was done ahead

    @property
    def round_seconds(self) -> float:
        """The median round, but for the first."""
        closed = [entry.closed_seconds for entry in self.summary.rounds]
        return statistics.median(after - before for before, after in pairwise(closed))

    @property
    def accuracy(self) -> float:
        """Of the last base, in [0, 1]."""
        return self.summary.final_accuracy or 0.0


def config(case: Case, ahead: bool, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """A run of one case."""
    return {
        "name": "overlap",
        "folder": str(folder),
        "seed": seed,
        "deterministic": False,
        "keep_bases": 1,
        "task": {
            "name": "partsum.shared.tasks:image_mlp",
            "options": {"folder": DATA, "widths": [640, 640, 640]},
        },
        "parts": {
            "planner": case.planner,
            "count": case.nodes,
            "rounds": rounds,
            "local_epochs": 0.1,
        },
        "training": {"batch_size": 64, "learning_rate": 1e-3, "ahead": ahead},
        "rounds": {"backup_after": 0.0},
        "handoff": {"enabled": False},
        "server": {"port": 0, "metrics_port": 0},
    }


async def play(case: Case, ahead: bool, seed: int, rounds: int, folder: Path) -> Outcome:
    """One run, or the finished one in ``folder``.

    Raises PartsumError with the coordinator's words where it fails.
    """
    text = to_toml(config(case, ahead, seed, rounds, folder))
    names = [f"node-{k}" for k in range(case.nodes)]
    if (found := finished(folder, parse_config(text))) is not None:
        return Outcome(found, share_ahead(folder, names))
    shutil.rmtree(folder, ignore_errors=True)  # what was broken off says nothing
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(text, encoding="utf-8")
    cluster = Cluster(folder)
    try:
        await asyncio.to_thread(cluster.coordinator)
        async with AsyncExitStack() as links:
            for name in names:
                link = slow_link(cluster.address, case.megabits)
                cluster.node(name, await links.enter_async_context(link))
            if await asyncio.to_thread(cluster.wait, "coordinator", 3600):
                raise PartsumError(f"{case.title}: {cluster.log('coordinator')[-1500:]}")
    finally:
        cluster.close()
    return Outcome(read_summary(cluster.run / "summary.json"), share_ahead(folder, names))


def share_ahead(folder: Path, nodes: Sequence[str]) -> float:
    """What share of its samples the nodes did ahead, by their logs."""
    said = "".join((folder / f"{name}.log").read_text() for name in nodes)
    given = re.findall(r"assignment=\S+ samples=(\d+)( were done ahead)?", said)
    done, in_all = (sum(int(n) for n, note in given if bool(note) == x) for x in (True, False))
    return done / in_all


Measured = dict[tuple[Case, bool], list[Outcome]]
"""(case, whether nodes go ahead) -> an outcome for each seed."""


def measure(cases: Sequence[Case], seeds: Sequence[int], rounds: int, folder: Path) -> Measured:
    """Every case with and without, one after the other."""
    found: Measured = {}
    for seed in seeds:
        for case in cases:
            for ahead in (False, True):
                where = folder / f"{case.key}-{seed}-{ahead}"
                outcome = asyncio.run(play(case, ahead, seed, rounds, where))
                found.setdefault((case, ahead), []).append(outcome)
    return found


def spread(outcomes: Sequence[Outcome], name: str) -> Spread:
    """A figure's mean and deviation over seeds."""
    return Spread.of([getattr(outcome, name) for outcome in outcomes])


def table(cases: Sequence[Case], found: Measured) -> Table:
    """A row for each case."""
    made = Table(box=None, header_style="dim")
    columns = ("parts", "s a round", "ahead: s a round", "done ahead, %")
    for column in (*columns, "accuracy, %", "ahead: accuracy, %"):
        made.add_column(column)
    for case in cases:
        waits, ahead = found[case, False], found[case, True]
        made.add_row(
            case.title,
            spread(waits, "round_seconds").text(2),
            spread(ahead, "round_seconds").text(2),
            spread(ahead, "ahead").text(0, 100),
            spread(waits, "accuracy").text(2, 100),
            spread(ahead, "accuracy").text(2, 100),
        )
    return made


def figures(found: Measured) -> dict[str, float]:
    """Means over seeds, by name."""
    return {
        f"{case.key}_{'ahead' if ahead else 'waits'}_{name}": spread(outcomes, name).mean
        for (case, ahead), outcomes in found.items()
        for name in ("round_seconds", "accuracy", "ahead")
    }


def draw(cases: Sequence[Case], found: Measured, path: Path) -> None:
    """Write a PNG: accuracy over seconds, a picture for each case, a line for each run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    size = (4.5 * len(cases), 3.6)
    figure, axes = pyplot.subplots(1, len(cases), figsize=size, squeeze=False, layout="constrained")
    for axis, case in zip(axes[0], cases, strict=True):
        for ahead, colour in ((False, "C7"), (True, "C0")):
            for number, outcome in enumerate(found[case, ahead]):
                rounds = outcome.summary.rounds
                begin = outcome.summary.phases[0].start_seconds
                seconds = [entry.closed_seconds - begin for entry in rounds]
                shares = [100 * (entry.accuracy or 0.0) for entry in rounds]
                label = ("goes ahead" if ahead else "waits") if number == 0 else None
                axis.plot(seconds, shares, color=colour, marker=".", label=label)
        axis.set_title(case.title, fontsize=10)
        axis.set_xlabel("seconds")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy, %")
    axes[0][0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Measure, print, write."""
    flags = parser(__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    options = flags.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cases, seeds, rounds = (CASES[:1], (0,), 4) if options.quick else (CASES, (0, 1, 2), 10)
    found = measure(cases, seeds, rounds, options.folder.absolute() / "overlap")
    wide_console().print(table(cases, found))
    if options.json:
        write_figures(options.json, figures(found))
    if options.plot:
        draw(cases, found, options.plot)


if __name__ == "__main__":
    main()
