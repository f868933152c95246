"""ARD on a model and off again: the noise that it adds, the price it asks, what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.relevance.ard import (
    kl_divergence,
    log_alpha,
    with_ard,
    without_ard,
)
from partsum.coordinator.relevance.training import LeftError, Lesson, train_whole
from partsum.shared.errors import PartsumError
from partsum.shared.task import Task
from partsum.shared.width import ScaledLinear


class Conv1D(nn.Module):
    """As in transformers: a Linear whose weight is (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nx, self.nf = inputs, outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


def scaled() -> ScaledLinear:
    layer = ScaledLinear(4, 3)
    layer.scale.fill_(0.25)
    return layer


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "scaled": (scaled, (4,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 4, 4)),
    "transposed": (lambda: Conv1D(3, 4), (5, 4)),
}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 2))


def halves() -> TensorDataset:
    """Two of ten inputs say everything, the others nothing."""
    inputs = torch.randn(600, 10, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, (inputs[:, 0] + inputs[:, 1] > 0).long())


TASK = Task(small, halves, halves, nn.functional.cross_entropy)
LESSON = Lesson(10, 64, 1e-2, (0.9, 0.99), 0.01, 0.0, 0.3, "float32", 7)


@pytest.mark.parametrize("name", LAYERS)
def test_the_noise_of_an_output_is_that_of_weights_drawn_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, inputs = make(), torch.randn(1, *shape)
    ard = with_ard(layer)
    ard.spreads[0].data.uniform_(-4, 0)
    deviation = (0.5 * ard.spreads[0]).exp().detach()
    with torch.no_grad():
        outputs = torch.cat([layer.train()(inputs) for _ in range(3000)])
        weight = layer.get_parameter("weight")
        mean, drawn = weight.clone(), []
        layer.eval()
        exact = layer(inputs)
        for _ in range(3000):
            weight.copy_(mean + deviation * torch.randn_like(mean))
            drawn.append(layer(inputs))
    spread = torch.cat(drawn).std(0)
    assert torch.allclose(outputs.std(0), spread, rtol=0.1)
    assert bool(((outputs.mean(0) - exact[0]).abs() < 0.1 * spread).all())


@pytest.mark.parametrize("name", LAYERS)
def test_a_model_without_it_again_is_what_it_was_to_the_bit(name: str) -> None:
    make, shape = LAYERS[name]
    model = nn.Sequential(make())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = torch.randn(2, *shape)
    expected = model(inputs)
    ard = with_ard(model)
    assert set(model.state_dict()) == {*before, "0.log_sigma2"}
    model(inputs)
    assert without_ard(ard) is model
    assert model.state_dict().keys() == before.keys()
    assert torch.equal(model(inputs), expected)


def test_noise_is_added_in_training_mode_only() -> None:
    model, inputs = small(), torch.randn(3, 10)
    expected = model(inputs)
    ard = with_ard(model)
    assert torch.equal(model.eval()(inputs), expected)
    assert not torch.equal(model.train()(inputs), expected)
    assert list(ard.log_alphas()) == ["0.weight", "3.weight"]


def test_it_cannot_be_put_on_twice() -> None:
    ard = with_ard(small())
    with pytest.raises(ValueError, match="has ARD on it already"):
        with_ard(ard.model)


def test_what_is_not_known_not_trained_or_never_called_is_left_alone() -> None:
    attention = nn.MultiheadAttention(4, 2)  # lends the weight of its out_proj to a function
    frozen = nn.Linear(4, 4)
    frozen.weight.requires_grad_(False)
    model = nn.ModuleList([attention, frozen, nn.Conv2d(4, 4, 1, groups=2), nn.Embedding(3, 4)])
    ard = with_ard(model)
    tokens = torch.randn(5, 1, 4)
    attention(tokens, tokens, tokens)
    assert ard.log_alphas() == {}
    assert float(ard.divergence()) == 0


@pytest.mark.parametrize("place", [-4.0, -1.0, 0.0, 2.0])
def test_the_divergence_is_the_exact_one_to_a_hundredth(place: float) -> None:
    """-KL = log(alpha) / 2 - E log|e| + const with e ~ N(1, alpha); const makes KL(oo) 0."""

    def exact(log: float) -> float:
        drawn = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).double()
        return float((1 + math.exp(log / 2) * drawn).abs().log().mean()) - log / 2

    found = float(kl_divergence(torch.tensor(place)))
    assert found == pytest.approx(exact(place) - exact(16.0), abs=0.02)


def test_log_alpha_has_bounds_also_where_a_weight_is_zero() -> None:
    values = log_alpha(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 2.0, -30.0]))
    assert values.tolist() == [8.0, 2.0, -8.0]


def test_training_finds_the_inputs_that_say_nothing() -> None:
    model = small()
    ard = with_ard(model)
    train_whole(model, TASK, halves(), LESSON, ard)
    alphas = ard.log_alphas()["0.weight"].detach()
    assert float(alphas[:, 2:].mean()) > 3 > float(alphas[:, :2].min(0).values.max())
    inputs, targets = halves().tensors
    pruned = without_ard(ard, threshold=3.0)
    assert float((pruned.get_parameter("0.weight") == 0).float().mean()) > 0.4
    assert float((pruned(inputs).argmax(-1) == targets).float().mean()) > 0.95


def test_the_same_lesson_gives_the_same_bytes_and_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)

    def trained() -> dict[str, Tensor]:
        model = small()
        ard = with_ard(model)
        torch.manual_seed(3)
        train_whole(model, TASK, halves(), replace(LESSON, epochs=1.5), ard)
        assert torch.equal(torch.rand(4), expected)
        return without_ard(ard).state_dict()

    first, second = trained(), trained()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_is_left_when_asked_and_a_loss_that_is_no_number_is_told() -> None:
    with pytest.raises(LeftError):
        train_whole(small(), TASK, halves(), LESSON, None, lambda: True)
    model = small()
    nn.init.constant_(model.get_parameter("0.bias"), float("nan"))
    with pytest.raises(PartsumError, match=r"loss is nan.*learning_rate"):
        train_whole(model, TASK, halves(), LESSON, None)


@pytest.mark.parametrize("change", [{"batch_size": 1, "epochs": 0.1}, {"epochs": 0.001}])
def test_batches_of_one_sample_are_trained_on_where_there_are_no_others(
    change: dict[str, Any],
) -> None:
    model = small()
    before = [parameter.clone() for parameter in model.parameters()]
    train_whole(model, TASK, halves(), replace(LESSON, warmup=0.0, **change), None)
    assert not any(map(torch.equal, before, model.parameters()))
