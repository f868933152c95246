"""The dry run of a search over structures: its rungs, and what structures cost."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from partsum.coordinator.advice import advise
from partsum.coordinator.base import Base
from partsum.coordinator.cost import Cost, part_cost
from partsum.coordinator.figures import bytes_text, count_text, gflop_text
from partsum.coordinator.gate_certificate import certify_gates
from partsum.coordinator.planner.structures import first_rung, gates_of
from partsum.coordinator.search import rung_sizes, searched_gates
from partsum.shared.config import RunConfig
from partsum.shared.errors import EXIT_OK
from partsum.shared.part import Part
from partsum.shared.task import Samples, Task, num_samples

_ROWS = 16  # structures shown; JSON has all


def show_search_plan(
    config: RunConfig, base: Base, task: Task, train: Samples, validation: Samples, as_json: bool
) -> int:
    """Print what a search would train; raises the PartsumErrors that the run itself would."""
    gates, asked = searched_gates(config, base), config.structures
    certify_gates(base, gates, validation)
    rung = first_rung(len(gates), asked.candidates, config.seed)
    batch = config.training.batch_size
    costs = {
        one.bits: part_cost(
            base.shape, base.widths, Part(gates=gates_of(one.bits, gates)), task, train, batch
        )
        for one in rung
    }
    samples = num_samples(train) // (1 if asked.data == "same" else config.parts.count)
    each = config.parts.local_epochs * samples
    sizes = rung_sizes(config, base)
    mean = sum(cost.flops_per_sample for cost in costs.values()) / len(costs)
    if as_json:
        found = {bits: _figures(cost, each) for bits, cost in costs.items()}
        said = {"gates": gates, "rounds": sizes, "structures": found}
        print(json.dumps({**said, "flops": sum(sizes) * each * mean}, indent=2))
    else:
        _print(config, gates, sizes, costs, each, sum(sizes) * each * mean)
    return EXIT_OK


def _figures(cost: Cost, samples: float) -> dict[str, float]:
    return {
        "parameters": cost.parameters,
        "flops_per_round": samples * cost.flops_per_sample,
        "state_bytes": cost.state_bytes,
        "memory_bytes": cost.memory_bytes,
    }


def _print(
    config: RunConfig,
    gates: tuple[str, ...],
    sizes: list[int],
    costs: dict[str, Cost],
    samples: float,
    flops: float,
) -> None:
    console = Console()
    console.print(f"[bold]{config.name}[/bold]: {config.task.name}, a search over structures")
    console.print(f"gates, in the order of a structure's bits: {', '.join(gates)}")
    total = f"all {2 ** len(gates)}" if len(costs) == 2 ** len(gates) else "a sample"
    console.print(
        f"first rung: {len(costs)} structures ({total}); in each round: "
        f"{', '.join(map(str, sizes))}, of {samples:,.0f} samples each"
    )
    table = Table(box=None, header_style="dim")
    for column in ("structure", "parameters", "GFLOP/round", "bytes", "memory"):
        table.add_column(column, justify="right" if column != "structure" else "left")
    shown = sorted(costs, key=lambda bits: costs[bits].flops_per_sample)
    half = _ROWS // 2
    for bits in shown if len(shown) <= _ROWS else [*shown[:half], "", *shown[-half:]]:
        if not bits:
            table.add_row(f"and {len(shown) - _ROWS} more between", style="dim")
            continue
        cost = costs[bits]
        table.add_row(
            bits,
            count_text(cost.parameters),
            gflop_text(samples * cost.flops_per_sample),
            bytes_text(cost.state_bytes),
            bytes_text(cost.memory_bytes),
        )
    console.print(table)
    for sentence in advise(config):
        console.print(f"warning: {sentence}", style="yellow", markup=False)
    console.print(
        f"about {gflop_text(flops)} GFLOP in all, {gflop_text(flops / config.parts.count)} for "
        f"each of {config.parts.count} nodes; FLOPs, memory and bytes are estimates",
        style="dim",
    )
