"""The methods that are compared, what is tuned for each, and the tasks they are compared on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.accuracy.federation import Federation
from benchmarks.accuracy.simulator import Mark, Recipe, Stage
from benchmarks.accuracy.workload import Workload

from partsum.shared.messages import TaskSpec

Plan = Recipe | Federation
"""All that a run's outcome depends on, beside its workload and seed."""


@dataclass(frozen=True)
class Sizes:
    """What fits a task."""

    small: int
    """Data-parallel training's small batch, over all nodes; a hand-off's too; tiny is half."""
    large: int
    rates: tuple[float, ...]
    """Learning rates that every method is tried with."""
    large_rates: tuple[float, ...]
    """Those of the large batch."""
    part_batch: int
    power: float
    """Parts train their matrices at rate * K ** power."""

    @property
    def own(self) -> int:
        """A node's share of the small batch."""
        return self.small // 4


@dataclass(frozen=True)
class Contest:
    """A task, and the sizes that fit it."""

    load: Workload
    sizes: Sizes
    by: str
    """What is compared: "accuracy", or "loss" where accuracy says little."""

    def score(self, mark: Mark) -> float:
        """Of which more is better."""
        return mark.accuracy if self.by == "accuracy" else -mark.loss


@dataclass(frozen=True)
class Method:
    """A way to train: its plan for a learning rate."""

    name: str
    title: str
    plan: Callable[[Sizes, float], Plan]
    large: bool = False
    single_host: str = ""
    """The title of the same outcome at the price of a hand-off on one host; "" where there is
    none."""

    def rates(self, sizes: Sizes) -> tuple[float, ...]:
        """What it is tuned over."""
        return sizes.large_rates if self.large else sizes.rates


def _stage(sizes: Sizes, parts: int, share: float, cloned: bool = False) -> Stage:
    batch = sizes.part_batch if parts > 1 else sizes.small
    return Stage(parts, share, batch, rounds=4, power=sizes.power, cloned=cloned)


def parts_then_handoff(sizes: Sizes, rate: float) -> Plan:
    """Four parts for half of the FLOPs, then the whole base."""
    return Recipe((_stage(sizes, 4, 0.5), _stage(sizes, 1, 0.5)), rate)


def staged(sizes: Sizes, rate: float) -> Plan:
    """Eight parts, then four, each two of them grown together, then the whole base."""
    stages = (_stage(sizes, 8, 0.25), _stage(sizes, 4, 0.25), _stage(sizes, 1, 0.5))
    return Recipe(stages, rate)


def averaged(sizes: Sizes, rate: float) -> Plan:
    """One eighth, averaged over the nodes now and then, copied with noise, then the whole base."""
    first = Stage(8, 0.5, sizes.part_batch, rounds=32, power=sizes.power, cloned="averaged")
    return Recipe((first, _stage(sizes, 1, 0.5)), rate)


def cloned(sizes: Sizes, rate: float) -> Plan:
    """One part that all nodes train together, copied with noise, then the whole base."""
    return Recipe((_stage(sizes, 4, 0.5, cloned=True), _stage(sizes, 1, 0.5)), rate)


def never_merged(sizes: Sizes, rate: float) -> Plan:
    """Four parts to the end; the merged base with grouped norms is their ensemble."""
    return Recipe((Stage(4, 1.0, sizes.part_batch, 8, power=sizes.power),), rate)


METHODS = (
    Method(
        "parts",
        "parts + hand-off",
        parts_then_handoff,
        single_host="parts + hand-off on one host",
    ),
    Method("staged", "8, then 4 parts + hand-off", staged),
    Method("averaged", "one eighth, averaged + hand-off", averaged),
    Method("dp_small", "data-parallel, small batch", lambda s, r: _data_parallel(s.small, r)),
    Method("dp_tiny", "data-parallel, tiny batch", lambda s, r: _data_parallel(s.small // 2, r)),
    Method("dp_large", "data-parallel, large batch", lambda s, r: _data_parallel(s.large, r), True),
    Method("ensemble", "parts, never merged", never_merged),
    Method("cloned", "one slice, cloned + hand-off", cloned),
    Method("diloco", "DiLoCo", lambda s, r: Federation(r, 9, s.own, outer=(0.7, 0.9))),
    Method("fedavg", "FedAvg of the whole model", lambda s, r: Federation(r, 16, s.own)),
    Method(
        "rolling",
        "rolling submodels (FedRolex)",
        lambda s, r: Federation(r, 16, s.own, widths=(0.5,) * 4, rolling=True),
    ),
    Method(
        "nested",
        "nested submodels (HeteroFL)",
        lambda s, r: Federation(r, 16, s.own, widths=(1.0, 0.5, 0.25, 0.125)),
    ),
)


def _data_parallel(batch: int, rate: float) -> Plan:
    return Recipe((Stage(1, 1.0, batch, 8),), rate)


_RATES = (1e-3, 2e-3, 4e-3)

CONTESTS = {
    "mlp": Contest(
        Workload(
            "mlp",
            TaskSpec("partsum.shared.tasks:image_mlp", {"widths": [640, 640, 640]}),
            budget=0.5,
        ),
        Sizes(64, 256, (5e-4, *_RATES), (*_RATES, 8e-3), part_batch=64, power=1.0),
        "accuracy",
    ),
    "vit": Contest(
        Workload(
            "vit",
            TaskSpec(
                "partsum.shared.tasks:image_vit",
                {"width": 96, "heads": 8, "layers": 4, "patch": 7},
            ),
            budget=0.25,
            glance=1000,
        ),
        Sizes(32, 256, _RATES, _RATES, part_batch=32, power=0.5),
        "accuracy",
    ),
    "gpt": Contest(
        Workload(
            "gpt",
            TaskSpec(
                "partsum.shared.tasks:char_gpt",
                {"width": 128, "heads": 8, "layers": 2, "context": 64, "validation": 512},
            ),
            budget=0.06,
            glance=256,
        ),
        Sizes(16, 64, _RATES, _RATES, part_batch=16, power=0.5),
        "loss",
    ),
}


def quick(contest: Contest) -> Contest:
    """A tenth of the budget and one learning rate."""
    sizes = replace(contest.sizes, rates=(2e-3,), large_rates=(4e-3,))
    load = replace(contest.load, budget=contest.load.budget / 10, glance=500)
    return replace(contest, load=load, sizes=sizes)
