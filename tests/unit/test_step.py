"""A node's step with FedProx's pull, by numbers worked out on paper."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.unit.test_trainer import SETTINGS, assignment, chain, make_task, run
from torch import nn

from partsum.node.model import build_part
from partsum.node.step import Stepper
from partsum.shared.messages import Blob, Part, TrainSettings
from partsum.shared.tensors import load_tensors, save_tensors

PLAIN = dataclasses.replace(SETTINGS, warmup=0.0, gradient_clip=0.0)


def walked(settings: TrainSettings, steps: int) -> list[float]:
    """A weight that begins at 1, under a loss whose gradient is 3 everywhere, at rate 0.1."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    groups = [{"params": [module.weight], "lr": 0.1, "peak": 0.1}]
    given = assignment(settings=settings, progress=(0.0, 0.0))
    stepper = Stepper(module, torch.optim.SGD(groups, lr=0.1), given)
    found = []
    for _ in range(steps):
        stepper.step(3 * module.weight.sum(), samples_done=0)
        found.append(module.weight.item())
    return found


@pytest.mark.parametrize(
    ("mu", "clip", "expected"),
    [
        (0.0, 0.0, [0.7, 0.4]),
        # Gradients 3, then 3 + 2 (0.7 - 1) = 2.4.
        (2.0, 0.0, [0.7, 0.46]),
        # Gradients 1, then 3 + 2 (0.9 - 1) = 2.8, clipped to 1: the pull is clipped too.
        (2.0, 1.0, [0.9, 0.8]),
        # Gradients 3, then 3 + 10 (0.7 - 1) = 0: pull and loss are in balance.
        (10.0, 0.0, [0.7, 0.7, 0.7]),
    ],
)
def test_each_step_is_pulled_by_mu_times_the_distance_from_the_start(
    mu: float, clip: float, expected: Sequence[float]
) -> None:
    settings = dataclasses.replace(PLAIN, proximal=mu, gradient_clip=clip)
    assert walked(settings, len(expected)) == pytest.approx(expected)


def test_a_parameter_that_is_frozen_or_not_used_stays_where_it_is() -> None:
    module = nn.ParameterDict({name: torch.ones(2) for name in ("used", "idle", "frozen")})
    module["frozen"].requires_grad_(False)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [{"params": trained, "lr": 0.1, "peak": 0.1}]
    given = assignment(settings=dataclasses.replace(PLAIN, proximal=1.0))
    stepper = Stepper(module, torch.optim.SGD(groups, lr=0.1), given)
    for _ in range(3):
        stepper.step(module["used"].sum(), samples_done=0)
    assert (module["used"] < 1).all()
    assert module["idle"].tolist() == module["frozen"].tolist() == [1.0, 1.0]


def test_a_large_mu_keeps_a_trained_part_near_its_start(tmp_path: Path) -> None:
    task, part = make_task(lambda: chain(dropout=0.0)), Part({})
    start = tmp_path / "start"
    begun = build_part(task.model, part, 3, None).module.state_dict()
    blob = Blob(save_tensors(start, begun, durable=False), start.stat().st_size)

    def distance(mu: float) -> float:
        settings = dataclasses.replace(PLAIN, proximal=mu)
        given = assignment(part=part, start=blob, settings=settings)
        trained = run(tmp_path, given, task, start=start, name=f"mu-{mu}")
        assert trained.path is not None
        found = load_tensors(trained.path)
        return math.sqrt(sum(float((found[n] - begun[n]).square().sum()) for n in begun))

    free, held, tight = (distance(mu) for mu in (0.0, 1.0, 100.0))
    assert 0 < tight < 0.5 * held < 0.5 * free
