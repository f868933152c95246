"""The dry run of a study: its models and what each costs, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from partsum.coordinator.base import Base
from partsum.coordinator.figures import bytes_text, count_text, gflop_text, seconds_text
from partsum.coordinator.invariants import certify
from partsum.coordinator.planner.sweep import cells
from partsum.coordinator.study.cutter import trial_parts
from partsum.coordinator.study.estimate import Estimate, estimates, kinds, makespan
from partsum.coordinator.study.table import NAMES
from partsum.coordinator.study.workshop import given_base
from partsum.shared.config import RunConfig
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_samples, load_task, num_samples


def show_study_plan(
    config: RunConfig, nodes: int, console: Console, clock: Callable[[], float]
) -> None:
    """Print what a study would train; raises the PartsumErrors that the study itself would."""
    task = load_task(TaskSpec(config.task.name, config.task.options))
    train = load_samples(task.train, "training")
    base = Base(task, torch.device("cpu"))
    if config.study.base is not None:
        given_base(Path(config.study.base), base)
    cut_all = config.study.depth == "all"
    validation = load_samples(task.validation, "validation")
    certify(base, trial_parts(config.study, base.widths), cut_all, validation)
    costs = estimates(config, base, train, clock)
    study, total = config.study, num_samples(train)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    for name in ("start", "units"):
        table.add_column(name, no_wrap=True)
    for name in ("keep", "data", "models", "parameters", "GFLOP", "time", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    bases = _bases(config, costs[1.0])
    if bases:
        table.add_row(*_row("base", "", 1.0, 1.0, len(bases), bases[0]))
    for cell, count in kinds(config):
        cost = costs[cell.keep]
        name = cell.selection or ""
        table.add_row(*_row(cell.start, name, cell.keep, cell.data, count, cost))
    each = [costs[cell.keep] for cell in cells(study)]
    console.print(
        f"[bold]{config.name}[/bold]: {config.task.name}, {total} training samples; "
        f"bases: {len(bases)}, of {study.base_epochs:g} passes over them; models: {len(each)}, of "
        f"{study.epochs:g}"
    )
    console.print(table)
    flops = sum(cost.flops for cost in [*bases, *each])
    seconds = sum(cost.seconds for cost in [*bases, *each])
    span = makespan([b.seconds for b in bases], nodes) + makespan([c.seconds for c in each], nodes)
    console.print(
        f"in all {gflop_text(flops)} GFLOP and {seconds_text(seconds)} of one such thread; with "
        f"{nodes} {'node' if nodes == 1 else 'nodes'} about {seconds_text(span)}"
    )
    console.print(
        "GFLOP, time and memory are of each model. FLOPs and memory are estimates. Times are from "
        "a few training steps that were made just now on one thread of this machine; they leave "
        "out transfers and evaluation.",
        style="dim",
    )


def _bases(config: RunConfig, whole: Estimate) -> list[Estimate]:
    """What each base costs, for each seed; none where none is trained."""
    if not config.study.trains_bases:
        return []
    times = config.study.base_epochs / config.study.epochs
    base = Estimate(
        keep=1.0,
        parameters=whole.parameters,
        flops=round(whole.flops * times),
        memory_bytes=whole.memory_bytes,
        seconds=whole.seconds * times,
    )
    return [base] * len(config.study.seeds)


def _row(
    start: str, selection: str, keep: float, data: float, count: int, cost: Estimate
) -> tuple[str, ...]:
    return (
        start,
        NAMES.get(selection, selection),
        f"{100 * keep:.4g} %",
        f"{100 * data:.4g} %",
        str(count),
        count_text(cost.parameters),
        f"{cost.flops / 1e9:,.4g}",
        seconds_text(cost.seconds),
        bytes_text(cost.memory_bytes),
    )
