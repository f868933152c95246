"""The dry run of a search over structures: its rungs, and what structures cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    team = team_cost(config, samples, max(cost.state_bytes for cost in costs.values()))
    if as_json:
        found = {bits: _figures(cost, each) for bits, cost in costs.items()}
        said = {"gates": gates, "rounds": sizes, "structures": found}
        after = {"cotrain": vars(team)} if config.cotrain.rounds else {}
        print(json.dumps({**said, **after, "flops": _flops(sizes, costs, each)}, indent=2))
    else:
        _print(config, gates, sizes, costs, each, team)
    return EXIT_OK


@dataclass(frozen=True)
class TeamCost:
    """What one member of a gang does in a round of co-training."""

    samples: int
    steps: int
    step_bytes: int
    """Sent, and received, in a step at most: a ring all-reduce of the dense model's gradient."""


def team_cost(config: RunConfig, samples: int, dense_bytes: int) -> TeamCost:
    """Of all training samples, and of a dense model that large."""
    members, asked = config.cotrain.structures, config.cotrain
    each = max(1, math.ceil(asked.local_epochs * samples / members))
    steps = math.ceil(each / config.training.batch_size)
    return TeamCost(each, steps, 2 * (members - 1) * dense_bytes // members)


def team_text(config: RunConfig, cost: TeamCost) -> str:
    """The same for a person."""
    round_bytes = bytes_text(cost.steps * cost.step_bytes)
    return (
        f"then co-training: {config.cotrain.rounds} rounds of the best {config.cotrain.structures} "
        f"structures in a gang, a node each; {cost.samples:,} samples in {cost.steps:,} steps a "
        f"round; nodes send each other at most {bytes_text(cost.step_bytes)} a step, "
        f"{round_bytes} a round"
    )


def _figures(cost: Cost, samples: float) -> dict[str, float]:
    return {
        "parameters": cost.parameters,
        "flops_per_round": samples * cost.flops_per_sample,
        "state_bytes": cost.state_bytes,
        "memory_bytes": cost.memory_bytes,
    }


def _flops(sizes: Sequence[int], costs: Mapping[str, Cost], samples: float) -> float:
    """Of a search whose rounds train so many structures; each costs their mean."""
    mean = sum(cost.flops_per_sample for cost in costs.values()) / len(costs)
    return sum(sizes) * samples * mean


def _print(
    config: RunConfig,
    gates: tuple[str, ...],
    sizes: list[int],
    costs: dict[str, Cost],
    samples: float,
    team: TeamCost,
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
    if config.cotrain.rounds:
        console.print(team_text(config, team))
    for sentence in advise(config):
        console.print(f"warning: {sentence}", style="yellow", markup=False)
    flops = _flops(sizes, costs, samples)
    each = gflop_text(flops / config.parts.count)
    console.print(
        f"about {gflop_text(flops)} GFLOP for the search, {each} for "
        f"each of {config.parts.count} nodes; FLOPs, memory and bytes are estimates",
        style="dim",
    )
