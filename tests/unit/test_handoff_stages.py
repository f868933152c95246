"""A model's layers for a pipeline: found by running it, and certified."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from partsum.shared.errors import HandoffError
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tasks.residual import ResidualMlp
from partsum.shared.tasks.transformer import CharGpt
from partsum.shared.zero.stages import Layer, cut_layers


def names_of(layers: list[Layer]) -> list[str]:
    return [name for layer in layers for name in layer.names.values()]


@pytest.mark.parametrize(
    ("model", "probe", "count"),
    [
        (Mlp(12, [8, 8], 4), torch.randn(2, 3, 4), 6),
        (ResidualMlp(12, 8, 16, 3, 4), torch.randn(2, 12), 5),
        (CharGpt(16, 6, 8, 2, 2), torch.randint(0, 16, (2, 6)), 4),
    ],
    ids=["sequential", "residual", "transformer"],
)
def test_layers_hold_every_tensor_once_and_give_the_models_outputs(
    model: nn.Module, probe: Tensor, count: int
) -> None:
    layers = cut_layers(model, probe)
    assert len(layers) == count
    assert sorted(names_of(layers)) == sorted(model.state_dict())
    stream = probe
    for layer in layers:
        stream = layer.module(stream)
    assert torch.allclose(stream, model(probe), atol=1e-5)


def test_gradients_through_the_layers_are_the_models_own() -> None:
    torch.manual_seed(0)
    model, probe = ResidualMlp(12, 8, 16, 3, 4), torch.randn(5, 12)
    named = dict(model.named_parameters())
    wanted = torch.autograd.grad(model(probe).square().sum(), list(named.values()))
    stream = probe
    for layer in cut_layers(model, probe):
        stream = layer.module(stream)
    found = torch.autograd.grad(stream.square().sum(), list(named.values()))
    for name, one, other in zip(named, wanted, found, strict=True):
        assert torch.allclose(one, other, atol=1e-6), name


class Around(nn.Module):
    """A list of blocks that can be spoilt in several ways."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 4)
        if fault == "tied":
            self.head.weight = self.embed.weight

    def forward(self, inputs: Tensor) -> Tensor:
        stream = self.embed(inputs)
        blocks = reversed(self.blocks) if self.fault == "order" else self.blocks
        for block in blocks:
            stream = block(stream)
            if self.fault == "between":
                stream = stream + 1
        if self.fault == "past":
            stream = stream + inputs
        outputs: Tensor = self.head(stream)
        return outputs


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("order", "blocks: its modules are not called once each, in order"),
        ("between", "module 1 does not read just what module 0 returns"),
        ("tied", "does not go with tied weights"),
        ("past", "Something goes past the blocks"),
    ],
)
def test_a_model_that_is_no_chain_is_refused_with_what_is_in_the_way(
    fault: str, words: str
) -> None:
    with pytest.raises(HandoffError, match=words):
        cut_layers(Around(fault), torch.randn(2, 4))


def test_a_model_without_a_list_of_blocks_is_told_to_have_one() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.one(inputs)
            return outputs

    with pytest.raises(HandoffError, match=r"no nn\.ModuleList or nn\.Sequential of two or more"):
        cut_layers(Plain(), torch.randn(2, 4))
