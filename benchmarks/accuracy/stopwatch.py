"""What one training step takes, measured in this process with nothing beside it.

All steps that a comparison needs are measured together, in turns, so that whatever else the machine
does falls on all alike; CPU seconds of one thread, the median of the turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.accuracy.costs import Step
from benchmarks.accuracy.federation import nested
from benchmarks.accuracy.learner import Learner
from benchmarks.accuracy.simulator import settings
from benchmarks.accuracy.workload import Workload
from pydantic import TypeAdapter

from partsum.coordinator.planner import equal_fractions
from partsum.coordinator.planner.complement import block_parts
from partsum.node.model import build_part
from partsum.shared.norms import group_norms
from partsum.shared.width import find_widths

_STEPS = 5  # timed together: a clock's tick is small beside them

_TIMES = TypeAdapter(list[tuple[Step, float]])


def measure(load: Workload, steps: Sequence[Step], turns: int, path: Path) -> dict[Step, float]:
    """Seconds of one step of each kind, or those in the file where it has all of them."""
    if path.exists():
        kept = dict(_TIMES.validate_json(path.read_bytes()))
        if set(steps) <= set(kept):
            return kept
    learners = {step: _learner(load, step) for step in dict.fromkeys(steps)}
    seen: dict[Step, list[float]] = {step: [] for step in learners}
    for step, learner in learners.items():
        _run(learner, step.batch)  # allocates
    for _ in range(turns):
        for step, learner in learners.items():
            seen[step].append(_run(learner, step.batch * _STEPS) / _STEPS)
    found = {step: statistics.median(times) for step, times in seen.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_TIMES.dump_json(list(found.items()), indent=2))
    return found


def _learner(load: Workload, step: Step) -> Learner:
    model = build_part(load.task.model, nested(load, step.width), 0, None)
    if step.groups > 1:
        widths = find_widths(model.module)
        group_norms(model.module, widths, block_parts(widths, equal_fractions(step.groups)))
    everything = torch.arange(load.samples)
    return Learner(load, model, settings(1e-3, step.batch, power=0.0), everything, seed=0)


def _run(learner: Learner, samples: int) -> float:
    begun = time.process_time()
    learner.train(0, samples, lambda _: 1.0)
    return time.process_time() - begun
