"""What is fixed for a whole run once its first nodes are there: widths and the schedule."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from partsum.coordinator.base import Base
from partsum.coordinator.cost import part_cost, parts_share
from partsum.coordinator.planner import Ranking, equal_fractions, measured_fractions, plan_parts
from partsum.coordinator.planner.sweep import cells
from partsum.coordinator.search import rung_sizes
from partsum.shared.config import PartsConfig, RunConfig
from partsum.shared.messages import NodeProfile
from partsum.shared.part import WHOLE
from partsum.shared.task import Samples, num_samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workplan:
    """Each part's share of the width, who it was sized for, and where the hand-off starts."""

    fractions: tuple[float, ...]
    holders: tuple[str, ...]  # the node that each part was sized for, or ""
    share: float  # of the schedule, in [0, 1]


def make_workplan(
    config: RunConfig, base: Base, train: Samples, profiles: Mapping[str, NodeProfile]
) -> Workplan:
    """The work plan for these nodes; with none known, widths are as given or equal."""
    if config.parts.is_study:
        shares = tuple(cell.keep for cell in cells(config.study))
        return Workplan(shares, ("",) * len(shares), 1.0)
    fractions, holders = _fractions(config.parts, profiles)
    return Workplan(fractions, holders, _share(config, base, train, fractions))


def _fractions(
    parts: PartsConfig, profiles: Mapping[str, NodeProfile]
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    nobody = ("",) * parts.count
    if isinstance(parts.fractions, list):
        return tuple(parts.fractions), nobody
    names = sorted(profiles)[: parts.count]
    if parts.fractions == "equal" or len(names) < parts.count:
        if profiles and parts.fractions == "measured":
            log.warning("fewer nodes than parts: widths are equal, not measured")
        return tuple(equal_fractions(parts.count)), nobody
    fractions = measured_fractions(
        [profiles[name].gflops for name in names],
        [profiles[name].memory_bytes for name in names],
        "block" if parts.is_block else "residual",
    )
    return tuple(fractions), tuple(names)


def _share(config: RunConfig, base: Base, train: Samples, fractions: tuple[float, ...]) -> float:
    """As given, or the parts phase's share of the FLOPs of one node."""
    if config.training.parts_share != "auto":
        return config.training.parts_share
    if not config.handoff.enabled or not config.parts.rounds:
        return 0.0 if config.handoff.enabled else 1.0
    batch = config.training.batch_size
    if config.parts.is_search:
        return _search_share(config, base, train)
    off = config.gates.off
    alike = Ranking({}, config.relevance.shared)  # only the parts' sizes count
    parts = set(plan_parts(config.parts, base.widths, fractions, config.seed, 0, alike, off))
    costs = [
        part_cost(base.shape, base.widths, part, base.task, train, batch).flops_per_sample
        for part in parts
    ]
    whole = replace(WHOLE, gates=dict.fromkeys(off, False))
    full = part_cost(base.shape, base.widths, whole, base.task, train, batch).flops_per_sample
    total, count = num_samples(train), config.parts.count
    local = round(config.parts.rounds * config.parts.local_epochs * total / count)
    return parts_share(max(costs), full, local, config.handoff.epochs * total, count)


def _search_share(config: RunConfig, base: Base, train: Samples) -> float:
    """The same of a search, as if every structure cost what the dense one does."""
    batch, parts, total = config.training.batch_size, config.parts, num_samples(train)
    full = part_cost(base.shape, base.widths, WHOLE, base.task, train, batch).flops_per_sample
    seen = total if config.structures.data == "same" else total // parts.count
    local = round(sum(rung_sizes(config, base)) * parts.local_epochs * seen / parts.count)
    cotrain = config.cotrain
    local += round(cotrain.rounds * cotrain.local_epochs * total / cotrain.structures)
    return parts_share(full, full, local, config.handoff.epochs * total, parts.count)
