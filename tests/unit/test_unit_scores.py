"""Scores of units: by hand where that is short, and the same whatever place a unit has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.relevance.ard import with_ard, without_ard
from partsum.coordinator.relevance.probing import activation_scores, taylor_scores
from partsum.coordinator.relevance.scores import ard_scores, magnitude_scores, sparse_shares
from partsum.shared.part import Part, cut_tensors
from partsum.shared.task import Task
from partsum.shared.tasks.transformer import Vit
from partsum.shared.width import Widths, find_widths

Score = Callable[[nn.Module], dict[str, Tensor]]


def convolutional() -> nn.Module:
    """A hidden group of 5 channels, which the head reads as blocks of 4."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(64, 1, 8, 8, generator=generator)
    return TensorDataset(images, torch.randint(0, 3, (64,), generator=generator))


TASK = Task(convolutional, samples, samples, nn.functional.cross_entropy)


def by_ard(model: nn.Module) -> dict[str, Tensor]:
    """Of spreads that depend on the weights, as those of a trained model do."""
    ard = with_ard(model)
    layers = (module for module in model.modules() if hasattr(module, "log_sigma2"))
    for spread, layer in zip(ard.spreads, layers, strict=True):
        spread.data.copy_(-4 + layer.get_parameter("weight").detach().abs())
    model(samples().tensors[0])
    found = ard_scores({k: v.detach() for k, v in ard.log_alphas().items()}, find_widths(model))
    without_ard(ard)
    return found


SCORES: dict[str, Score] = {
    "ard": by_ard,
    "magnitude": lambda model: magnitude_scores(model, find_widths(model)),
    "taylor": lambda model: taylor_scores(model, find_widths(model), TASK, samples(), 0),
    "activation": lambda model: activation_scores(model, find_widths(model), samples(), 0),
}


@pytest.mark.parametrize("name", SCORES)
def test_units_that_change_places_take_their_scores_with_them(name: str) -> None:
    model = convolutional()
    widths = find_widths(model)
    before = SCORES[name](model)
    turned = {group.name: torch.randperm(group.units) for group in widths.groups}
    part = Part({group: tuple(order.tolist()) for group, order in turned.items()})
    model.load_state_dict(cut_tensors(model.state_dict(), widths, part))
    after = SCORES[name](model)
    assert before.keys() == {group.name for group in widths.groups}
    for group, order in turned.items():
        assert torch.allclose(after[group], before[group][order], rtol=1e-4)
        assert len(set(before[group].tolist())) == len(order)


def test_magnitude_is_the_norm_of_incoming_and_outgoing_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
        model.get_parameter("2.weight").copy_(torch.tensor([[2.0, 5.0]]))
    assert magnitude_scores(model, find_widths(model))["0"].tolist() == [3.0, 5.0]


def test_a_unit_of_low_alpha_is_strong_and_scores_what_dropout_would_keep() -> None:
    widths = find_widths(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
    alphas = {
        "0.weight": torch.tensor([[-2.0, -2.0], [5.0, 4.0]]),
        "2.weight": torch.tensor([[-2.0, 0.0]]),
    }
    strong, weak = ard_scores(alphas, widths)["0"].tolist()
    assert strong == pytest.approx(1 / (1 + torch.tensor(-2.0).exp()))
    assert weak == pytest.approx(1 / (1 + torch.tensor(3.0).exp()))
    assert sparse_shares(alphas, widths) == {"0": pytest.approx(1 / 3)}


def test_a_unit_that_never_fires_has_no_activation_and_changes_no_loss() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.constant_(model.get_parameter("1.bias")[2:], -1e3)
    widths = find_widths(model)
    fired = activation_scores(model, widths, samples(), 0)["1"]
    mattered = taylor_scores(model, widths, TASK, samples(), 0)["1"]
    assert (fired > 0).tolist() == (mattered > 0).tolist() == [True, True, False, False]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_heads_of_attention_and_the_units_of_its_mlp_are_scored_too() -> None:
    torch.manual_seed(0)
    model = Vit(8, 4, 16, 4, 1, 32, 3)
    widths: Widths = find_widths(model)
    hidden = {group.name for group in widths.groups if group.depth == "hidden"}
    for score in ("ard", "magnitude", "taylor", "activation"):
        found = SCORES[score](model)
        assert hidden <= found.keys()
        assert all(len(found[name]) == widths.group(name).units for name in hidden)
