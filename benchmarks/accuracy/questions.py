"""What the lab asks about the method: each question is a set of recipes that differ in one thing.

What came out is in docs/lab-notes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from benchmarks.accuracy.simulator import Recipe, Stage
from benchmarks.accuracy.workload import Workload

from partsum.shared import schedule
from partsum.shared.messages import TaskSpec

_LOOKS = 16  # marks on each curve, about


@dataclass(frozen=True)
class Bench:
    """A workload and what is usual on it.

    ``tuning`` is what data-parallel training may choose from, batch and learning rate; ``rate`` and
    ``batch`` are what parts and hand-off train with, where the question does not say otherwise.
    """

    load: Workload
    tuning: tuple[tuple[int, float], ...]
    rate: float
    batch: int

    def grown(self, *ends: tuple[int, float], **changes: Any) -> Recipe:
        """Stages of so many parts, each up to that share of the budget; changes to all stages."""
        shares = [end - begin for begin, end in pairwise([0.0, *(end for _, end in ends)])]
        stages = tuple(
            Stage(
                parts,
                share,
                rounds=max(2, round(_LOOKS * share)),
                **{"batch": self.batch, "power": 0.5} | changes,
            )
            for (parts, _), share in zip(ends, shares, strict=True)
        )
        return Recipe(stages, self.rate)

    @property
    def rivals(self) -> dict[str, Recipe]:
        """Data-parallel training by learning rate and batch."""
        return {
            f"data-parallel, batch {batch}, lr {rate:g}": replace(
                self.grown((1, 1.0), batch=batch), learning_rate=rate
            )
            for batch, rate in self.tuning
        }


BENCHES = {
    "mlp": Bench(
        Workload("mlp", TaskSpec("partsum.shared.tasks:image_mlp"), 0.5),
        tuning=((32, 5e-4), (32, 1e-3), (64, 1e-3), (64, 2e-3)),
        rate=2e-3,
        batch=64,
    ),
    "vit": Bench(
        Workload("vit", TaskSpec("partsum.shared.tasks:image_vit", {"patch": 7}), 0.25),
        tuning=((16, 1e-3), (16, 2e-3), (32, 2e-3)),
        rate=2e-3,
        batch=32,
    ),
    "gpt": Bench(
        Workload(
            "gpt",
            TaskSpec("partsum.shared.tasks:char_gpt", {"width": 128, "layers": 2, "context": 64}),
            0.06,
            glance=256,
        ),
        tuning=((8, 1e-3), (16, 2e-3)),
        rate=2e-3,
        batch=16,
    ),
}

HALF = ((4, 0.5), (1, 1.0))
"""Four parts for half of the budget, then the whole."""


@dataclass(frozen=True)
class Restart:
    """A cosine of its own for each stage, from the full rate down to zero."""

    ends: tuple[float, ...]

    def __call__(self, progress: float, begin: float, warmup: float) -> float:
        """See `Schedule`."""
        end = next(end for end in self.ends if end > begin)
        return schedule.rate((progress - begin) / (end - begin), warmup)


@dataclass(frozen=True)
class Plateau:
    """Warm-up, constant up to ``fall``, then linearly to zero (WSD, 2404.06395)."""

    fall: float = 0.7

    def __call__(self, progress: float, begin: float, warmup: float) -> float:
        """See `Schedule`."""
        rise = min(1.0, max(progress - begin, 1e-4) / warmup)
        return rise * min(1.0, (1 - progress) / (1 - self.fall))


def _rivals(bench: Bench) -> dict[str, Recipe]:
    return bench.rivals


def _stages(bench: Bench) -> dict[str, Recipe]:
    plans = (
        HALF,
        ((8, 0.5), (1, 1.0)),
        ((4, 0.25), (2, 0.5), (1, 1.0)),
        ((8, 0.25), (4, 0.5), (1, 1.0)),
        ((8, 0.125), (4, 0.25), (2, 0.5), (1, 1.0)),
        ((8, 0.2), (4, 0.4), (2, 0.6), (1, 1.0)),
    )
    return {_name(plan): bench.grown(*plan) for plan in plans}


def _handoff(bench: Bench) -> dict[str, Recipe]:
    shares = (0.12, 0.25, 0.5, 0.75, 0.9)
    plans = [((4, share), (1, 1.0)) for share in shares]
    return {_name(plan): bench.grown(*plan) for plan in plans} | {
        "4 parts, never merged": bench.grown((4, 1.0))
    }


def _count(bench: Bench) -> dict[str, Recipe]:
    widest = 16 if bench.load.name == "mlp" else 8  # heads there are
    counts = [count for count in (2, 4, 8, 16) if count <= widest]
    return {f"{k} parts to 50 %": bench.grown((k, 0.5), (1, 1.0)) for k in counts}


def _rates(bench: Bench) -> dict[str, Recipe]:
    found = {}
    for power in (0.0, 0.5, 1.0):
        for factor in (0.5, 1.0):
            recipe = bench.grown(*HALF, power=power)
            rate = factor * recipe.learning_rate
            found[f"power {power:g}, lr {rate:g}"] = replace(recipe, learning_rate=rate)
    return found


def _whole_rate(bench: Bench) -> dict[str, Recipe]:
    return {f"hand-off's lr x {f:g}": _last(bench.grown(*HALF), rate=f) for f in (0.25, 0.5, 1, 2)}


def _schedule(bench: Bench) -> dict[str, Recipe]:
    plain = bench.grown(*HALF)
    return {
        "one cosine": plain,
        "a cosine each": replace(plain, schedule=Restart((0.5, 1.0))),
        "plateau to 70 %": replace(plain, schedule=Plateau()),
        "plateau to 50 %": replace(plain, schedule=Plateau(0.5)),
    }


def _cross(bench: Bench) -> dict[str, Recipe]:
    plain = bench.grown(*HALF)
    return {f"cross blocks x {c:g}": _last(plain, cross=c) for c in (0.0, 0.03, 0.1, 0.3, 1.0)}


def _moments(bench: Bench) -> dict[str, Recipe]:
    plain = bench.grown(*HALF)
    return {"reset": plain, "kept": _last(plain, keep_moments=True)}


def _clusters(bench: Bench) -> dict[str, Recipe]:
    plain = bench.grown(*HALF)
    return {"iid": plain, "kmeans": replace(plain, clusters="kmeans")}


def _batch(bench: Bench) -> dict[str, Recipe]:
    sizes = (16, 32, 64, 128)
    plain = bench.grown(*HALF)
    return {f"hand-off's batch {size}": _last(plain, batch=size) for size in sizes}


def _part_batch(bench: Bench) -> dict[str, Recipe]:
    plain = bench.grown(*HALF)
    return {f"parts' batch {size}": _first(plain, batch=size) for size in (16, 32, 64, 128)}


def _cloned(bench: Bench) -> dict[str, Recipe]:
    plans = (
        HALF,
        ((8, 0.5), (1, 1.0)),
        ((8, 0.25), (4, 0.5), (1, 1.0)),
        ((8, 0.2), (4, 0.4), (2, 0.6), (1, 1.0)),
        ((4, 0.25), (1, 1.0)),
        ((4, 1.0),),
        ((8, 1.0),),
    )
    found = {}
    for plan in plans:
        recipe = bench.grown(*plan)
        stages = tuple(replace(stage, cloned=stage.parts > 1) for stage in recipe.stages)
        found[f"one of {_name(plan)}"] = replace(recipe, stages=stages)
    return found


def _averaged(bench: Bench) -> dict[str, Recipe]:
    found = {}
    for parts in (4, 8):
        for rounds in (8, 32, 128):
            recipe = bench.grown((parts, 0.5), (1, 1.0))
            grown = _first(recipe, cloned="averaged", rounds=rounds)
            found[f"one of {parts} to 50 %, averaged {rounds} times"] = grown
    return found


def _norms(bench: Bench) -> dict[str, Recipe]:
    plain = bench.grown(*HALF)
    return {"plain": plain, "grouped": replace(plain, grouped=True)}


QUESTIONS: Mapping[str, Callable[[Bench], dict[str, Recipe]]] = {
    "rivals": _rivals,
    "stages": _stages,
    "handoff": _handoff,
    "count": _count,
    "rates": _rates,
    "handoff_rate": _whole_rate,
    "schedule": _schedule,
    "cross": _cross,
    "moments": _moments,
    "clusters": _clusters,
    "batch": _batch,
    "part_batch": _part_batch,
    "norms": _norms,
    "cloned": _cloned,
    "averaged": _averaged,
}


def _name(plan: tuple[tuple[int, float], ...]) -> str:
    return ", ".join(f"{parts} to {100 * end:g} %" for parts, end in plan)


def _last(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, stages=(*recipe.stages[:-1], replace(recipe.stages[-1], **changes)))


def _first(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, stages=(replace(recipe.stages[0], **changes), *recipe.stages[1:]))
