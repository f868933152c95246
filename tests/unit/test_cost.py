"""What a part costs is found without spending it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base, meta_model
from partsum.coordinator.cost import Cost, part_cost, parts_share
from partsum.coordinator.invariants import certify
from partsum.shared.errors import TaskError
from partsum.shared.part import WHOLE, Part
from partsum.shared.task import Task
from partsum.shared.width import find_widths

PART = Part({"0": (0, 1)})


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def samples() -> TensorDataset:
    return TensorDataset(torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64))


def cost_of(part: Part, batch: int = 16) -> Cost:
    task = Task(chain, samples, samples, nn.functional.cross_entropy)
    shape = meta_model(task)
    return part_cost(shape, find_widths(shape), part, task, samples(), batch)


def test_the_cost_of_a_chain_is_that_of_its_matrices() -> None:
    cost = cost_of(WHOLE)
    assert cost.parameters == 6 * 8 + 8 + 8 * 3 + 3
    assert cost.state_bytes == 4 * cost.parameters
    assert cost.flops_per_sample == 3 * 2 * (6 * 8 + 8 * 3)
    assert cost.memory_bytes > 4 * cost.state_bytes  # weights, gradients, moments, activations


def test_a_quarter_of_the_units_costs_a_quarter_where_one_side_is_cut() -> None:
    whole, part = cost_of(WHOLE), cost_of(PART)
    assert part.parameters == 6 * 2 + 2 + 2 * 3 + 3
    assert 4 * part.flops_per_sample == whole.flops_per_sample
    assert part.memory_bytes < whole.memory_bytes


def test_flops_by_sample_do_not_depend_on_the_batch_and_memory_does() -> None:
    small, large = cost_of(WHOLE, 2), cost_of(WHOLE, 64)
    assert small.flops_per_sample == large.flops_per_sample
    assert small.memory_bytes < large.memory_bytes


def test_nothing_but_shapes_is_touched() -> None:
    touched: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        touched.extend([outputs, targets])
        return nn.functional.cross_entropy(outputs, targets)

    task = Task(chain, samples, samples, loss)
    shape = meta_model(task)
    part_cost(shape, find_widths(shape), PART, task, samples(), 4)
    assert touched
    assert all(tensor.is_meta for tensor in touched)


def test_the_hand_off_starts_where_the_parts_flops_end() -> None:
    assert parts_share(1.0, 4.0, 100, 25.0, 1) == 0.5
    assert parts_share(1.0, 4.0, 100, 100.0, 4) == 0.5
    assert parts_share(1.0, 4.0, 0, 100.0, 4) == 0.0
    assert parts_share(1.0, 4.0, 100, 0.0, 4) == 1.0
    assert parts_share(0.0, 0.0, 0, 0.0, 0) == pytest.approx(0.0)


def test_a_model_that_does_not_take_its_data_is_said_to_be_so_and_no_traceback() -> None:
    rows = TensorDataset(torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64))
    task = Task(chain, lambda: rows, lambda: rows, nn.functional.cross_entropy)
    shape = meta_model(task)
    words = r"model or loss fails on samples of the data, inputs of shape \(2, 5\)"
    with pytest.raises(TaskError, match=words):
        part_cost(shape, find_widths(shape), WHOLE, task, rows, 16)
    with pytest.raises(TaskError, match=r"fails on its own data, inputs of shape \(4, 5\)"):
        certify(Base(task, torch.device("cpu")), [WHOLE], True, rows)
