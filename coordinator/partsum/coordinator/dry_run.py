"""The dry run: a run's parts and what each costs, before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from partsum.coordinator.advice import advise
from partsum.coordinator.base import Base
from partsum.coordinator.cost import Cost, part_cost, parts_share
from partsum.coordinator.figures import bytes_text, count_text, gflop_text, names_text
from partsum.coordinator.folder import given_models
from partsum.coordinator.gate_certificate import certify_gates, check_regularisation
from partsum.coordinator.growth.start import Start
from partsum.coordinator.handoff_cost import (
    HandoffCost,
    check_handoff,
    handoff_costs,
    handoff_sentences,
)
from partsum.coordinator.invariants import certify
from partsum.coordinator.planner import Ranking, equal_fractions, plan_parts, plan_slices
from partsum.coordinator.privacy import check_model, epsilon_of
from partsum.coordinator.relevance.plan import ranking_flops, ranking_sentences
from partsum.coordinator.search_plan import show_search_plan
from partsum.coordinator.strategies.layers import step_factors
from partsum.shared.config import RunConfig, load_config
from partsum.shared.errors import EXIT_OK, ConfigError
from partsum.shared.messages import TaskSpec
from partsum.shared.part import WHOLE, Part
from partsum.shared.task import load_samples, load_task, num_samples


def show_plan(path: Path, as_json: bool) -> int:
    """Print what a run would do; raises the PartsumErrors that the run itself would."""
    config = load_config(path)
    if config.parts.is_study:
        raise ConfigError(f"{path} is a study; see what it costs with `partsum study --dry-run`")
    task = load_task(TaskSpec(config.task.name, config.task.options))
    train = load_samples(task.train, "training")
    validation = load_samples(task.validation, "validation")
    base = Base(task, torch.device("cpu"))
    if config.parts.is_search:
        check_regularisation(base, config.regularisation)
        return show_search_plan(config, base, task, train, validation, as_json)
    given, off = config.parts.fractions, config.gates.off
    fractions = given if isinstance(given, list) else equal_fractions(config.parts.count)
    certify_gates(base, off, validation)
    alike = Ranking({}, config.relevance.shared)  # nobody knows yet which units are strong
    parts = plan_parts(config.parts, base.widths, fractions, config.seed, 0, alike, off)
    slices = plan_slices(config.parts, base.widths, fractions, config.seed, alike)
    check_regularisation(base, config.regularisation, slices)
    if config.start.models:
        Start(config, base, given_models(config, path)).check()
    step_factors(config.outer, base.shape)  # raises where there is no depth to scale by
    certify(base, slices, config.parts.is_block or config.parts.is_copies, validation)
    if config.privacy.noise_multiplier:
        check_model(base.shape)
    batch = config.training.batch_size
    costs = [part_cost(base.shape, base.widths, p, task, train, batch) for p in parts]
    structure = replace(WHOLE, gates=parts[0].gates)
    whole = part_cost(base.shape, base.widths, structure, task, train, config.handoff.batch_size)
    total = num_samples(train)
    handed: list[HandoffCost] = []
    if config.handoff.over_nodes:
        check_handoff(config, base, train)
        handed = handoff_costs(config, base, whole, train)
    figures = {
        "samples": total,
        "base_parameters": whole.parameters,
        "parts": [
            _part_figures(config, p, c, base, total) for p, c in zip(parts, costs, strict=True)
        ],
        "handoff_flops": config.handoff.epochs * total * whole.flops_per_sample,
        "handoff_memory_bytes": whole.memory_bytes,
        "handoff_over_nodes": [vars(cost) for cost in handed],
        "ranking_flops": ranking_flops(config, whole, total),
        "privacy_epsilon": epsilon_of(config),
        "parts_share": parts_share(
            max(cost.flops_per_sample for cost in costs),
            whole.flops_per_sample,
            round(config.parts.rounds * config.parts.local_epochs * total / config.parts.count),
            config.handoff.epochs * total,
            config.parts.count,
        ),
    }
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _print(config, base, parts, costs, whole, figures)
    return EXIT_OK


def _part_figures(
    config: RunConfig, part: Part, cost: Cost, base: Base, total: int
) -> dict[str, float]:
    parts = config.parts
    block = parts.is_block
    travels = 3 if parts.moments == "travel" else 1  # AdamW has two moments for each weight
    samples = parts.rounds * parts.local_epochs * total / parts.count
    return {
        "fraction": part.fraction(base.widths),
        "parameters": cost.parameters,
        "flops": samples * cost.flops_per_sample,
        # Mode block downloads nothing: a part starts from its seed and stays on its node.
        "bytes_down_per_round": 0 if block else cost.state_bytes,
        "bytes_up_per_round": travels * cost.state_bytes,
        "memory_bytes": cost.memory_bytes,
    }


def _times(count: float, what: str) -> str:
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def _depth(base: Base, part: Part) -> Iterator[str]:
    """How deep the parts are cut: which groups, and what every node holds whole."""
    cut = [group for group in base.widths.groups if group.name in part.units]
    whole = base.shape.state_dict().keys() - {slot.tensor for g in cut for slot in g.slots}
    whole -= set(base.widths.scales)
    if not cut:
        yield "depth: nothing is cut"
        return
    stream = {group.name for group in base.widths.groups if group.depth == "stream"}
    if stream & part.units.keys():
        yield "depth: every axis, the stream too"
    elif stream or base.widths.block_refusal:
        yield "depth: hidden axes; what connects the layers is whole in every part"
    else:
        yield "depth: every axis, all of them hidden"
    yield f"width groups: {names_text(f'{group.name} ({group.units})' for group in cut)}"
    yield f"not cut: {names_text(sorted(whole))}"
    if base.widths.block_refusal:
        yield f"mode block cannot cut this model: {base.widths.block_refusal}"


def _print(
    config: RunConfig,
    base: Base,
    parts: list[Part],
    costs: list[Cost],
    whole: Cost,
    figures: dict[str, object],
) -> None:
    console = Console()
    planner, mode = config.parts.planner, config.parts.mode
    kind = "full" if planner == "full" else f"{planner}, mode {mode}"
    total = figures["samples"]
    assert isinstance(total, int)
    console.print(f"[bold]{config.name}[/bold]: {config.task.name}, {total} samples")
    console.print(
        f"parts phase: {_times(config.parts.rounds, 'round')} of "
        f"{_times(config.parts.local_epochs, 'local epoch')}, "
        f"{_times(config.parts.count, 'part')} ({kind})"
    )
    if config.start.models:
        how = "fused from" if config.start.grow == "fuse" else "widened from"
        console.print(f"base 0: {how} {', '.join(config.start.models)}")
    for sentence in ranking_sentences(config, whole, total):
        console.print(sentence)
    table = Table(box=None, header_style="dim")
    for column in ("part", "width", "parameters", "GFLOP", "down/round", "up/round", "memory"):
        table.add_column(column, justify="right")
    rows = figures["parts"]
    assert isinstance(rows, list)
    for k, row in enumerate(rows):
        table.add_row(
            str(k),
            f"{row['fraction']:.0%}",
            count_text(row["parameters"]),
            gflop_text(row["flops"]),
            bytes_text(row["bytes_down_per_round"]),
            bytes_text(row["bytes_up_per_round"]),
            bytes_text(row["memory_bytes"]),
        )
    flops = figures["handoff_flops"]
    assert isinstance(flops, float)
    table.add_row(
        "base",
        "100%",
        count_text(whole.parameters),
        gflop_text(flops),
        "",
        "",
        bytes_text(whole.memory_bytes),
        style="dim",
    )
    console.print(table)
    for sentence in advise(config):
        console.print(f"warning: {sentence}", style="yellow", markup=False)
    for sentence in _depth(base, parts[0]):
        console.print(sentence)
    if base.widths.gates:
        console.print(f"gates: {names_text(gate.name for gate in base.widths.gates)}")
    if parts[0].off:
        console.print(f"gates off: {', '.join(parts[0].off)}")
    share = figures["parts_share"]
    assert isinstance(share, float)
    if config.handoff.enabled:
        console.print(
            f"hand-off: {_times(config.handoff.epochs, 'epoch')}, "
            f"ZeRO stage {config.handoff.zero_stage}"
            f"{' with offload' if config.handoff.offload else ''}; the parts phase is "
            f"{share:.0%} of each node's FLOPs"
        )
    handed = figures["handoff_over_nodes"]
    assert isinstance(handed, list)
    if handed:
        for sentence in handoff_sentences(config, [HandoffCost(**cost) for cost in handed], total):
            console.print(sentence)
    if (spent := figures["privacy_epsilon"]) is not None:
        console.print(
            f"differential privacy: all rounds together spend epsilon {spent:.3g} at delta "
            f"{config.privacy.delta:g} of each part's cluster of data"
        )
    console.print(
        "FLOPs, memory and bytes are estimates: GFLOP per node for the whole phase, memory for "
        "weights, gradients, AdamW and one batch's activations. A narrow part's measured "
        "speed-up is smaller than its FLOPs promise.",
        style="dim",
    )
