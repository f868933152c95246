from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.width_models import MODELS
from torch import Tensor, nn
from torch.nn import functional

from partsum.node.trainer import Job, train
from partsum.shared.errors import PartsumError
from partsum.shared.messages import Assignment, Blob, Part, TrainSettings
from partsum.shared.structural import (
    ExpertChoiceRouter,
    Router,
    StructuralMoE,
    Structures,
    TopKRouter,
    structural_mlp,
    with_structural_experts,
)
from partsum.shared.structural.layer import Act
from partsum.shared.structural.mixture import Blend
from partsum.shared.structural.routers import balance_loss
from partsum.shared.task import gather
from partsum.shared.tasks import digits_vit
from partsum.shared.tasks.transformer import Vit
from partsum.shared.tensors import load_tensors
from partsum.shared.width import find_widths

CPU = torch.device("cpu")


class Given(Router):
    """Chooses what a test says."""

    def __init__(self, structures: Structures, chosen: Tensor) -> None:
        super().__init__(1, structures)
        self.chosen = chosen

    def forward(self, tokens: Tensor) -> Tensor:
        return self.chosen


def by_the_formula(
    inputs: Tensor, up: nn.Linear, act: Act, down: nn.Linear, chosen: Tensor, structures: Structures
) -> Tensor:
    """The same, token by token and expert by expert, as the definition has it."""
    slices = torch.tensor_split(torch.arange(inputs.shape[1]), structures.splits)
    rows = []
    for token, weights in zip(inputs, chosen, strict=True):
        total = torch.zeros(down.in_features, dtype=inputs.dtype)
        for number, weight in enumerate(weights):
            for run in structures.groups(number):
                index = torch.cat([slices[i] for i in run])
                share = len(run) / structures.splits
                inner = up.weight[:, index] @ token[index] + share * up.bias
                total = total + weight * act(inner)
        rows.append(down(total))
    return torch.stack(rows)


@settings(deadline=None, max_examples=20)
@given(
    splits=st.integers(2, 5),
    width=st.integers(5, 11),
    tokens=st.integers(1, 6),
    seed=st.integers(0, 2**20),
    act=st.sampled_from([functional.gelu, functional.silu, torch.tanh]),
)
def test_experts_compute_their_definition_and_so_do_their_gradients(
    splits: int, width: int, tokens: int, seed: int, act: Act
) -> None:
    torch.manual_seed(seed)
    structures = Structures(splits)
    up, down = nn.Linear(width, 7).double(), nn.Linear(7, width).double()
    found: list[Tensor] = []
    expected: list[Tensor] = []
    start = torch.randn(tokens, width, dtype=torch.float64)
    weights = torch.rand(tokens, structures.count, dtype=torch.float64)
    weights = weights * (torch.rand_like(weights) < 0.3)  # some tokens have no expert at all
    for which, seen in ((structural_mlp, found), (by_the_formula, expected)):
        inputs, chosen = start.clone().requires_grad_(), weights.clone().requires_grad_()
        up.zero_grad()
        down.zero_grad()
        if which is structural_mlp:
            output = structural_mlp(inputs, [up], act, down, Given(structures, chosen))
        else:
            output = by_the_formula(inputs, up, act, down, chosen, structures)
        torch.autograd.backward(output.square().sum())
        parameters = (*up.parameters(), *down.parameters())
        # What is not chosen has no weight that a gradient could be of.
        grads = [t.grad for t in (inputs, chosen, *parameters) if t.grad is not None]
        grads[1] = grads[1] * (weights > 0)
        seen += [output, *grads]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [64, 61])
def test_with_all_gates_on_it_is_the_dense_layer_to_1e_6(width: int) -> None:
    torch.manual_seed(0)
    up, down = nn.Linear(width, 256), nn.Linear(256, width)
    structures = Structures(7)
    dense = functional.one_hot(torch.full((300,), structures.dense), 64).float()
    inputs = torch.randn(3, 100, width)
    found = structural_mlp(inputs, [up], functional.gelu, down, Given(structures, dense))
    expected = down(functional.gelu(up(inputs)))
    assert (found - expected).abs().max() < 1e-6


def test_products_that_are_computed_again_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    up, down, router = nn.Linear(24, 96), nn.Linear(96, 24), TopKRouter(24, Structures(4), top_k=2)
    inputs = torch.randn(700, 24, requires_grad=True)  # some chunks of tokens
    found = structural_mlp(inputs, [up], functional.gelu, down, router, recompute=True)
    torch.autograd.backward(found.square().sum())
    grads = [p.grad for m in (up, down, router) for p in m.parameters()]
    torch.manual_seed(0)
    again, back, choose = nn.Linear(24, 96), nn.Linear(96, 24), TopKRouter(24, Structures(4), 2)
    other = torch.randn(700, 24, requires_grad=True)
    expected = structural_mlp(other, [again], functional.gelu, back, choose)
    torch.autograd.backward(expected.square().sum())
    others = [p.grad for m in (again, back, choose) for p in m.parameters()]
    for one, two in zip([inputs.grad, *grads], [other.grad, *others], strict=True):
        torch.testing.assert_close(one, two)


def test_seven_splits_make_64_structures_of_28_segments() -> None:
    structures = Structures.of(64)
    assert (structures.splits, structures.gates, structures.count) == (7, 6, 64)
    assert len(structures.segments) == 28
    assert structures.groups(structures.dense) == (range(7),)
    assert len(structures.groups(0)) == 7
    assert structures.groups(0b000001) == (range(2), *(range(i, i + 1) for i in range(2, 7)))
    with pytest.raises(ValueError, match="power of two"):
        Structures.of(48)
    with pytest.raises(ValueError, match="can be split into 2 to 12"):
        Structures(13)


def test_what_several_experts_of_a_token_share_is_taken_once() -> None:
    structures = Structures(3)
    chosen = torch.zeros(2, 4)
    chosen[0, 0], chosen[0, 1] = 0.25, 0.75  # {0}{1}{2} and {0 1}{2}
    blend = Blend.of(chosen, structures)
    assert blend.order.tolist() == [1, 0]  # the other token has no expert
    assert blend.counts == [0, 4]
    assert sorted(blend.weights.tolist()) == [0.25, 0.25, 0.75, 1.0]


@pytest.mark.parametrize("kind", ["gpt2, tied", "llama", "deepseek", "vit", "gpt"])
def test_any_transformer_takes_experts_and_keeps_the_names_of_its_dense_layers(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind].make()
    dense = copy.deepcopy(model.state_dict())
    with_structural_experts(model, experts=8, top_k=2)
    missing, unexpected = model.load_state_dict(dense, strict=False)
    assert not unexpected
    assert missing
    assert all(name.endswith("router.weight") for name in missing)
    outputs = model.train()(MODELS[kind].inputs())
    outputs.float().square().mean().backward()
    routers = [p for name, p in model.named_parameters() if name.endswith("router.weight")]
    assert len(routers) == len(missing)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in routers)
    assert len({id(p) for p in model.parameters()}) == len(dict(model.named_parameters()))


@pytest.mark.parametrize("kind", ["gpt2, tied", "llama", "deepseek", "vit"])
def test_a_model_whose_routers_say_dense_computes_what_it_did(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind].make().eval()
    inputs = MODELS[kind].inputs()
    expected = model(inputs)
    with_structural_experts(model, experts=8)
    for module in model.modules():
        if isinstance(module, Router):
            module.forward = always_dense
    torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)


def always_dense(tokens: Tensor) -> Tensor:
    return functional.one_hot(torch.full((len(tokens),), 7), 8).float()


def test_the_width_groups_leave_experts_whole_and_say_why() -> None:
    widths = find_widths(with_structural_experts(Vit(8, 4, 24, 6, 2, 36, 5), experts=8))
    assert {group.name for group in widths.groups} == {"blocks.0.heads", "blocks.1.heads"}
    assert "structural experts" in widths.block_refusal
    llama = find_widths(with_structural_experts(MODELS["llama"].make(), experts=8))
    assert not any("mlp" in group.name for group in llama.groups)
    assert "structural experts" in llama.block_refusal


def test_a_model_without_a_known_mlp_is_refused_in_words() -> None:
    with pytest.raises(PartsumError, match="Linear has no MLP at"):
        with_structural_experts(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="is not an MLP of a known layout"):
        StructuralMoE(nn.Sequential(nn.Linear(3, 3)), TopKRouter(3, Structures(2)))


def test_the_balance_loss_is_one_where_all_are_chosen_alike_and_grows_with_skew() -> None:
    even = torch.full((8, 4), 0.25)
    assert balance_loss(even, torch.eye(4).repeat(2, 1)) == pytest.approx(1)
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(8, 1)
    first = functional.one_hot(torch.zeros(8, dtype=torch.int64), 4).float()
    assert balance_loss(skewed, first) == pytest.approx(2.8)


def test_the_balance_loss_reaches_the_router_and_no_one_else_notices() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(64, 6) + 1  # all alike: one expert would take nearly all
    router = TopKRouter(6, Structures(3), top_k=1, balance=1.0, z=0.01)
    optimizer = torch.optim.SGD(router.parameters(), lr=0.5)
    before = shares(router, tokens).max()
    for _ in range(60):
        optimizer.zero_grad()
        (router(tokens).sum() * 0).backward()  # the loop's own loss says nothing
        optimizer.step()
    assert shares(router, tokens).max() < before
    assert shares(router, tokens).max() < 0.5


def shares(router: Router, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        taken = (router(tokens) > 0).float()
    share: Tensor = taken.sum(dim=0) / taken.sum()
    return share


def test_experts_that_choose_take_equally_many_tokens() -> None:
    torch.manual_seed(0)
    router = ExpertChoiceRouter(6, Structures(3), capacity=2.0)
    chosen = router(torch.randn(32, 6))
    assert (chosen > 0).sum(dim=0).tolist() == [16] * 4
    sums = chosen.sum(dim=1)
    assert bool(((sums - 1).abs() < 1e-6).logical_or(sums == 0).all())
    model = with_structural_experts(Vit(8, 4, 24, 6, 2, 36, 5), experts=8, choice="experts")
    model(torch.randn(3, 1, 8, 8)).sum().backward()
    with pytest.raises(ValueError, match="capacity = 0"):
        ExpertChoiceRouter(6, Structures(3), capacity=0)


@pytest.mark.parametrize("k", [0, 9])
def test_more_experts_for_a_token_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="there are 8 experts to choose from"):
        TopKRouter(4, Structures(4), top_k=k)


def test_under_autocast_products_are_in_half_precision_and_close() -> None:
    torch.manual_seed(0)
    model = with_structural_experts(Vit(8, 4, 24, 6, 1, 96, 5), experts=8, top_k=8).eval()
    inputs = torch.randn(4, 1, 8, 8)
    exact = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(inputs)
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.05)


SETTINGS = TrainSettings(
    batch_size=32,
    learning_rate=3e-3,
    width_lr_power=0.5,
    weight_decay=0.01,
    betas=(0.9, 0.99),
    gradient_clip=1.0,
    warmup=0.01,
    precision="float32",
    aggregate="weights",
    deterministic=True,
)


def trained(tmp_path: Path, name: str) -> dict[str, Tensor]:
    task = digits_vit(width=32, layers=2, experts=8, experts_per_token=2)
    count = len(task.train())  # type: ignore[arg-type]
    job = Job(
        assignment=Assignment(
            id=name,
            round=0,
            part_index=0,
            part=Part({}),
            seed=3,
            start=None,
            cluster=Blob("0" * 32, 8 * count),
            samples=None,
            first_sample=0,
            num_samples=3 * count,
            progress=(0.0, 0.8),
            settings=SETTINGS,
        ),
        start=None,
        optimizer=None,
        cluster=torch.arange(count),
        samples=task.train(),
        output=tmp_path / name,
        device=CPU,
    )
    train(task, job, lambda progress: None, lambda: False)
    return dict(load_tensors(tmp_path / name))


def test_a_node_trains_experts_as_any_model_with_the_same_bytes_and_the_router_stays_balanced(
    tmp_path: Path,
) -> None:
    task = digits_vit(width=32, layers=2, experts=8, experts_per_token=2)
    model = task.model()
    loaded = trained(tmp_path, "one")
    again = trained(tmp_path, "two")
    assert all(torch.equal(loaded[name], again[name]) for name in loaded)
    inputs, targets = gather(task.validation(), torch.arange(360))
    with torch.no_grad():
        before = float(task.loss(model(inputs), targets))
    model.load_state_dict(loaded)
    heard: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(note_shares(heard))
    model.eval()
    with torch.no_grad():
        assert float(task.loss(model(inputs), targets)) < 0.6 * before
    for share in heard:
        assert share.max() < 0.5
        assert (share > 0.02).sum() >= 6


def note_shares(heard: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        taken = (output > 0).float()
        heard.append(taken.sum(dim=0) / taken.sum())

    return note
