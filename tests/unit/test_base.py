"""The base: models that can be cut, those that cannot, and what catches a silent error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base, meta_model
from partsum.coordinator.invariants import assert_mean_of_parts, assert_merge, certify
from partsum.coordinator.merge import BLOCK, Contribution, MergeRule, Tensors, merge_state
from partsum.coordinator.planner import plan_parts
from partsum.coordinator.stand_in import stand_in
from partsum.shared.config import PartsConfig
from partsum.shared.errors import TaskError, WidthError
from partsum.shared.norms import group_norms
from partsum.shared.part import Part, cut_module, fresh_module
from partsum.shared.task import Task
from partsum.shared.tensors import load_tensors
from partsum.shared.width import (
    Axis,
    Count,
    ScaledLinear,
    Slot,
    WidthGroup,
    Widths,
    find_widths,
)

CPU = torch.device("cpu")


def images(samples: int = 40, pixels: int = 8) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 1, pixels, pixels, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 3, (samples,), generator=generator))


def rows(samples: int = 40) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 6, generator=generator) * 2 + 1
    return TensorDataset(inputs, torch.randint(0, 3, (samples,), generator=generator))


def task_of(model: Callable[[], nn.Module], samples: Callable[[], TensorDataset] = rows) -> Task:
    return Task(model, samples, samples, nn.functional.cross_entropy)


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 10),
        nn.LayerNorm(10),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(10, 8),
        nn.RMSNorm(8),
        nn.Linear(8, 3),
    )


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def residual_chain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), ScaledLinear(8, 6), nn.ReLU(), nn.Linear(6, 3))


class Heads(nn.Module):
    """Attention-like: what is forgotten in its width groups is chosen by the test."""

    def __init__(self, forget: str = "") -> None:
        super().__init__()
        self.forget = forget
        self.heads = 4
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        split = self.up(inputs).view(len(inputs), self.heads, -1)
        return self.down(split.softmax(-1).flatten(1))  # type: ignore[no-any-return]

    def width_groups(self) -> Widths:
        axis = Axis(self, "heads", 4, "hidden").made_by("up", block=2)
        if self.forget != "slot":
            axis.read_by("down", block=2)
        if self.forget != "count":
            axis.counted_by("", "heads")
        return Widths((axis.done(),), readouts=("down.weight",))


def block_parts(base: Base, count: int = 2) -> list[Part]:
    return plan_parts(PartsConfig(), base.widths, [1 / count] * count, 0, 0)


def trained_parts(base: Base, parts: list[Part]) -> list[nn.Module]:
    """Parts as different as after training, with statistics of their own."""
    models = []
    for k, part in enumerate(parts):
        model = fresh_module(cut_module(base.task.model(), base.widths, part), seed=k)
        generator = torch.Generator().manual_seed(k)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point() and tensor.dim():
                    tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
        models.append(model.eval())
    return models


def merged(
    base: Base, parts: list[Part], models: list[nn.Module], weights: list[float], rule: MergeRule
) -> nn.Module:
    shares = [
        Contribution(part, Tensors(model.state_dict()), weight)
        for part, model, weight in zip(parts, models, weights, strict=True)
    ]
    model = fresh_module(base.task.model(), 99)
    group_norms(model, base.widths, parts)
    model.load_state_dict(merge_state(model.state_dict(), shares, base.widths, rule))
    return model.eval()


# -- plain chains --------------------------------------------------------------------------------


def test_a_chain_alternates_hidden_and_stream_axes_and_ends_in_a_readout() -> None:
    widths = find_widths(perceptron())
    assert [(g.name, g.units, g.depth) for g in widths.groups] == [
        ("0", 8, "hidden"),
        ("3", 10, "stream"),
        ("7", 8, "hidden"),
    ]
    assert widths.readouts == ("9.weight",)


def test_a_flattened_channel_is_a_block_of_what_the_next_layer_reads() -> None:
    widths = find_widths(convolutions())
    assert Slot("8.weight", 1, block=4) in widths.group("4").slots
    model = convolutions()
    part = Part({"0": (1, 2), "4": (0, 5), "8": (3,)})
    narrow = cut_module(model, widths, part)
    expected = model.get_parameter("8.weight")[3:4, [0, 1, 2, 3, 20, 21, 22, 23]]
    assert torch.equal(narrow.get_parameter("8.weight"), expected)
    assert narrow(torch.ones(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()),
            "what it is given and what it gives there is no axis to cut",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2)),
            r"layer 1 \(PReLU\) holds parameters",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2)),
            r"layer 1 \(Sequential\) holds parameters",
        ),
        (
            nn.Sequential(nn.Linear(4, 5), nn.Linear(6, 2)),
            "layer 1 reads 6 inputs, which is not a multiple of the 5 units",
        ),
        (nn.Sequential(nn.Linear(4, 2)), r"no width groups in Sequential.*width_groups\(\)"),
        (nn.GRU(4, 4), r"no width groups in GRU.*docs/tutorial.md"),
    ],
)
def test_a_model_that_the_chain_rule_cannot_cut_is_refused_in_words(
    model: nn.Module, said: str
) -> None:
    with pytest.raises(WidthError, match=said):
        find_widths(model)


class Says(nn.Sequential):
    """Two layers of 4 units, and whatever groups the test wants."""

    def __init__(self, widths: Widths) -> None:
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 2))
        self.widths = widths

    def width_groups(self) -> Widths:
        return self.widths


def group(*slots: Slot, name: str = "g", units: int = 4, counts: tuple[Count, ...] = ()) -> Widths:
    return Widths((WidthGroup(name, units, "hidden", slots, counts),))


ROWS, COLUMNS = Slot("0.weight", 0), Slot("1.weight", 1)


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        (group(Slot("2.weight", 0)), "names the tensor '2.weight'"),
        (group(Slot("0.weight", 1)), "dimension 1 of '0.weight', whose shape is"),
        (group(Slot("0.weight", 2)), "dimension 2 of '0.weight'"),
        (group(Slot("1.weight", -1)), "dimension -1 of '1.weight'"),
        (group(ROWS, units=3), "has 3 units of 1"),
        (group(Slot("0.weight", 0, block=2)), "has 4 units of 2"),
        (group(Slot("0.weight", 0, 1, (0, 2)), units=2), None),
        (group(Slot("0.weight", 0, 1, (0, 1)), units=2), r"at offsets \(0, 1\)"),
        (group(Slot("0.weight", 0, 1, (0, 4)), units=2), r"at offsets \(0, 4\)"),
        (group(ROWS, units=0), "has 0 units"),
        (
            Widths((*group(ROWS).groups, *group(ROWS, name="h").groups)),
            "'g' and 'h' both claim dimension 0 of '0.weight'",
        ),
        (Widths((*group(ROWS).groups, *group(COLUMNS).groups)), "two width groups have the name"),
        (group(ROWS, counts=(Count("0", "out_features"),)), None),
        (group(ROWS, counts=(Count("0", "out_features", 2),)), "'out_features' of module '0'"),
        (group(ROWS, counts=(Count("0", "heads"),)), "'heads' of module '0'"),
        (group(ROWS, counts=(Count("5", "heads"),)), "'heads' of module '5'"),
        (Widths((), readouts=("head.weight",)), "'head.weight', which does not exist"),
        (Widths((), scales=("0.scale",)), "'0.scale', which does not exist"),
    ],
)
def test_width_groups_that_do_not_fit_the_model_are_refused_in_words(
    widths: Widths, said: str | None
) -> None:
    if said is None:
        assert find_widths(Says(widths)) == widths
    else:
        with pytest.raises(WidthError, match=said):
            find_widths(Says(widths))


# -- cutting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [perceptron, convolutions, residual_chain])
def test_cutting_on_the_meta_device_gives_the_same_shapes_at_no_cost(
    make: Callable[[], nn.Module],
) -> None:
    real = make()
    with torch.device("meta"):
        hollow = make()
    part = Part({group.name: (0, 2) for group in find_widths(hollow).groups})
    found = cut_module(hollow, find_widths(hollow), part).state_dict()
    expected = cut_module(real, find_widths(real), part).state_dict()
    assert all(tensor.is_meta for tensor in found.values())
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}


def test_cutting_leaves_the_base_as_it_was() -> None:
    model = perceptron()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    narrow = cut_module(model, find_widths(model), Part({"0": (1,), "3": (1,), "7": (1,)}))
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("make", [perceptron, convolutions, residual_chain])
def test_a_fresh_module_has_the_seeds_bytes_whatever_was_there_before(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(5)
    one = fresh_module(make(), 3).state_dict()
    other = make()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    again, different = fresh_module(other, 3).state_dict(), fresh_module(make(), 4).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], different[name]) for name in one)


def test_a_fresh_module_leaves_the_random_numbers_of_others_alone() -> None:
    model = perceptron()
    position = torch.random.get_rng_state()
    fresh_module(model, 3)
    assert torch.equal(position, torch.random.get_rng_state())


def test_base_0_is_the_same_for_the_same_seed_whatever_the_model_draws(tmp_path: Path) -> None:
    class Positions(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 4), ScaledLinear(4, 3), nn.Linear(3, 3))
            self.shift = nn.Parameter(torch.randn(6))

        def forward(self, inputs: Tensor) -> Tensor:
            inputs = inputs + self.shift
            for layer in self:
                inputs = layer(inputs)
            return inputs

    base = Base(task_of(Positions), CPU)
    digests = [base.initial(tmp_path / f"{n}", seed, 0.25) for n, seed in enumerate([7, 7, 8])]
    assert digests[0] == digests[1] != digests[2]
    assert load_tensors(tmp_path / "0")["1.scale"] == 0.25


def test_a_model_that_cannot_be_built_is_an_error_in_words() -> None:
    def broken() -> nn.Module:
        raise KeyError("layers")

    with pytest.raises(TaskError, match="the task's model failed: KeyError: 'layers'"):
        meta_model(task_of(broken))


def test_a_model_that_looks_at_its_values_while_it_is_built_still_has_its_shapes() -> None:
    def looking() -> nn.Module:
        model = perceptron()
        assert float(next(model.parameters()).sum()) == pytest.approx(0, abs=1e9)
        return model

    shape = meta_model(task_of(looking))
    assert all(parameter.is_meta for parameter in shape.parameters())


# -- what catches a silent error -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "samples"), [(perceptron, rows), (convolutions, images), (Heads, rows)]
)
def test_right_widths_are_certified(
    make: Callable[[], nn.Module], samples: Callable[[], TensorDataset]
) -> None:
    base = Base(task_of(make, samples), CPU)
    certify(base, block_parts(base), True, samples())


def test_right_widths_are_certified_in_mode_residual() -> None:
    base = Base(task_of(residual_chain), CPU)
    parts = plan_parts(PartsConfig(mode="residual"), base.widths, [0.5, 0.5], 0, 0)
    certify(base, parts, False, rows())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Heads("slot"),
        lambda: Heads("count"),
        lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1), nn.Linear(4, 3)),
        lambda: nn.Sequential(
            nn.Linear(6, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 3)
        ),
    ],
    ids=["a slot is forgotten", "a count is forgotten", "softmax over units", "norm of no weight"],
)
def test_widths_that_do_not_describe_the_model_are_refused(make: Callable[[], nn.Module]) -> None:
    base = Base(task_of(make), CPU)
    with pytest.raises(WidthError, match=r"width_groups\(\)"):
        certify(base, block_parts(base), True, rows())


def test_an_error_behind_a_layer_that_begins_at_zero_is_found() -> None:
    class Quiet(Heads):
        def __init__(self) -> None:
            super().__init__("count")

        def init_weights(self) -> None:
            nn.init.zeros_(self.down.weight)

    base = Base(task_of(Quiet), CPU)
    with pytest.raises(WidthError, match=r"width_groups\(\)"):
        certify(base, block_parts(base), True, rows())


@pytest.mark.parametrize(
    ("make", "samples"), [(perceptron, rows), (convolutions, images)], ids=["mlp", "conv"]
)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0]])
def test_the_merged_base_computes_the_weighted_mean_of_its_parts(
    make: Callable[[], nn.Module], samples: Callable[[], TensorDataset], weights: list[float]
) -> None:
    base = Base(task_of(make, samples), CPU)
    parts = block_parts(base)
    models = trained_parts(base, parts)
    inputs, targets = base.probe(samples())
    whole = merged(base, parts, models, weights, BLOCK)
    shares = [weight / sum(weights) for weight in weights]
    assert assert_mean_of_parts(whole, models, shares, inputs) < 1e-4
    losses = [float(base.task.loss(model(inputs), targets)) for model in models]
    mean = sum(w * loss for w, loss in zip(shares, losses, strict=True))
    assert float(base.task.loss(whole(inputs), targets)) <= mean + 1e-6


@pytest.mark.parametrize(
    "rule",
    [MergeRule("keep", weigh_readouts=True), MergeRule("zero", weigh_readouts=False)],
    ids=["random cross blocks are left in", "1/K is missing"],
)
def test_a_merge_that_is_wrong_is_caught(rule: MergeRule) -> None:
    """Failure modes 1 and 2."""
    base = Base(task_of(perceptron), CPU)
    parts = block_parts(base)
    models = trained_parts(base, parts)
    inputs, _ = base.probe(rows())
    with pytest.raises(WidthError, match="does not compute the mean of its parts"):
        assert_mean_of_parts(
            merged(base, parts, models, [1.0, 1.0], rule), models, [0.5, 0.5], inputs
        )


def test_a_part_that_has_diverged_does_not_stop_a_merge(caplog: pytest.LogCaptureFixture) -> None:
    base = Base(task_of(perceptron), CPU)
    parts = block_parts(base)
    models = trained_parts(base, parts)
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.fill_(3e38)  # finite, so the update was not refused
    whole = merged(base, parts, models, [1.0, 1.0], BLOCK)
    shares = [
        Contribution(part, Tensors(model.state_dict()), 1.0)
        for part, model in zip(parts, models, strict=True)
    ]
    assert_merge(base, whole, shares, rows())
    assert "a part has diverged" in caplog.text


def test_accuracy_hides_a_missing_mean_and_the_loss_shows_it() -> None:
    """Failure mode 2: a chain of ReLUs is homogeneous, so only the logits' size is wrong."""

    def chain() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3, bias=False))

    base = Base(task_of(chain), CPU)
    parts = block_parts(base, 4)
    models = trained_parts(base, parts)
    inputs, _ = base.probe(rows())
    right = merged(base, parts, models, [1.0] * 4, BLOCK)
    wrong = merged(base, parts, models, [1.0] * 4, MergeRule("zero", weigh_readouts=False))
    assert torch.equal(right(inputs).argmax(-1), wrong(inputs).argmax(-1))
    torch.testing.assert_close(wrong(inputs), 4 * right(inputs))
    with pytest.raises(WidthError):
        assert_mean_of_parts(wrong, models, [0.25] * 4, inputs)


def test_an_output_that_is_nan_is_not_called_the_same() -> None:
    base = Base(task_of(perceptron), CPU)
    model = base.task.model().eval()
    inputs, _ = base.probe(rows())
    broken = nn.Sequential(model, nn.Threshold(float("inf"), float("nan")))
    with pytest.raises(WidthError):
        assert_mean_of_parts(broken, [model], [1.0], inputs)


def test_a_stand_in_is_a_noisy_clone_of_a_live_part_of_its_shape() -> None:
    """Failure mode 8: clones without noise would stay symmetric."""
    base = Base(task_of(perceptron), CPU)
    parts = block_parts(base)
    live = trained_parts(base, parts)[0].state_dict()
    share = Contribution(parts[0], Tensors(live), 5.0)
    clone = stand_in(base, parts[1], [share], seed=1)
    assert clone.keys() == live.keys()
    for name, tensor in clone.items():
        if tensor.dim() > 1:
            assert not torch.equal(tensor, live[name]), name
            assert (tensor - live[name]).std() < 0.2 * live[name].std(), name
        else:
            assert torch.equal(tensor, live[name]), name
    again, other = stand_in(base, parts[1], [share], 1), stand_in(base, parts[1], [share], 2)
    assert all(torch.equal(clone[name], again[name]) for name in clone)
    assert not torch.equal(clone["0.weight"], other["0.weight"])


def test_a_stand_in_of_single_numbers_is_finite() -> None:
    base = Base(task_of(lambda: nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))), CPU)
    parts = plan_parts(PartsConfig(), base.widths, [0.5, 0.5], 0, 0)
    live = cut_module(base.task.model(), base.widths, parts[0]).state_dict()
    clone = stand_in(base, parts[1], [Contribution(parts[0], Tensors(live), 5.0)], seed=1)
    assert all(tensor.isfinite().all() for tensor in clone.values())


def test_a_stand_in_without_a_live_part_of_its_shape_is_fresh() -> None:
    base = Base(task_of(perceptron), CPU)
    wide, narrow = plan_parts(PartsConfig(), base.widths, [0.75, 0.25], 0, 0)
    live = Contribution(wide, Tensors(trained_parts(base, [wide])[0].state_dict()), 5.0)
    for others in ([], [live]):
        tensors = stand_in(base, narrow, others, seed=4)
        cut_module(base.task.model(), base.widths, narrow).load_state_dict(tensors)


def test_recalibration_brings_a_bases_statistics_to_those_of_the_data(tmp_path: Path) -> None:
    """Failure mode 6, on the file; the last batch holds one sample, which torch refuses."""
    base = Base(task_of(perceptron), CPU)
    base.initial(tmp_path / "b", 0, 1.0)
    data = rows(129)
    assert base.recalibrated(tmp_path / "b", data, seed=1) is not None
    state = load_tensors(tmp_path / "b")
    reached = nn.functional.linear(data.tensors[0], state["0.weight"], state["0.bias"])
    torch.testing.assert_close(state["1.running_mean"], reached.mean(0), rtol=0.05, atol=0.05)
    torch.testing.assert_close(state["1.running_var"], reached.var(0), rtol=0.05, atol=0.05)


def test_a_base_without_batch_norm_needs_no_recalibration(tmp_path: Path) -> None:
    base = Base(task_of(residual_chain), CPU)
    base.initial(tmp_path / "b", 0, 1.0)
    before = (tmp_path / "b").read_bytes()
    assert base.recalibrated(tmp_path / "b", rows(), seed=1) is None
    assert (tmp_path / "b").read_bytes() == before
