"""Grown bases compute what their models do, or it is said by how much they do not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base, seeded_model
from partsum.coordinator.growth.model import open_model
from partsum.coordinator.growth.start import Start
from partsum.coordinator.growth.widening import Widened, reading_dim
from partsum.coordinator.invariants import assert_mean_of_parts
from partsum.coordinator.merge import write_merged
from partsum.shared.config import RunConfig, parse_config
from partsum.shared.errors import ConfigError, PartsumError, TaskError, WidthError, WireError
from partsum.shared.task import Task
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tasks.transformer import CharGpt, Vit
from partsum.shared.tensors import load_tensors, save_tensors
from partsum.shared.width import Axis, Widths

CPU = torch.device("cpu")
NAME = "somebody.tasks:this"
Make = Callable[..., nn.Module]


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(12, 1, 8, 8, generator=generator), torch.arange(12) % 3)


def characters() -> TensorDataset:
    places = torch.arange(72).view(12, 6) % 7
    return TensorDataset(places, places)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def task_of(make: Make, *sizes: int) -> Task:
    data = characters if make in (gpt, tied) else images
    return Task(lambda: make(*sizes), data, data, cross_entropy)


def mlp(first: int, second: int) -> nn.Module:
    return Mlp(64, [first, second], 3)


def conv(channels: int, hidden: int) -> nn.Module:
    """A flattened map is a block of 16 numbers a channel; batch norm's statistics are buffers."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * channels, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 3),
    )


def normed(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        nn.RMSNorm(width),
        nn.ReLU(),
        nn.Linear(width, hidden),
        nn.LayerNorm(hidden),
        nn.Linear(hidden, 3),
    )


def vit(heads: int, hidden: int) -> nn.Module:
    return Vit(8, 4, 4 * heads, heads, 2, hidden, 3)


def gpt(heads: int) -> nn.Module:
    return CharGpt(7, 6, 4 * heads, heads, 2)


class Tied(nn.Module):
    """Its head is its embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, places: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(places).relu())
        return logits

    def width_groups(self) -> Widths:
        width = self.embed.weight.shape[1]
        return Widths((Axis(self, "stream", width, "stream").made_by("embed").done(),))


def tied(width: int) -> nn.Module:
    return Tied(width)


def trained(make: Make, sizes: Sequence[int], seed: int) -> nn.Module:
    """As if trained: nothing is left at 0 or 1, statistics of norms neither."""
    model = seeded_model(task_of(make, *sizes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("scale"):
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def save(path: Path, model: nn.Module, **metadata: str) -> Path:
    save_tensors(path, model.state_dict(), metadata, durable=False)
    return path


def config_of(grow: str = "fuse", models: int = 1, parts: str = "", **start: Any) -> RunConfig:
    more = "".join(f", {key} = {value}" for key, value in start.items())
    names = [f"m{k}.safetensors" for k in range(models)]
    return parse_config(
        f"task = {{ name = '{NAME}' }}\nparts = {{ {parts or 'rounds = 0'} }}\n"
        f"start = {{ models = {names}, grow = '{grow}'{more} }}"
    )


def grown(
    folder: Path, make: Make, sizes: Sequence[int], models: Sequence[nn.Module], config: RunConfig
) -> tuple[Start, Base, Path, str]:
    """The start, the base, its file, and what was said of it."""
    paths = [save(folder / f"m{k}.safetensors", model) for k, model in enumerate(models)]
    task = task_of(make, *sizes)
    base = Base(task, CPU)
    start = Start(config, base, paths)
    base.initial(folder / "fresh", 3, start.scale)
    said = start.grow(folder / "fresh", folder / "base", task.validation())
    return start, base, folder / "base", said


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(inputs)
    return found


def inputs_of(make: Make) -> Tensor:
    return (characters() if make is gpt else images()).tensors[0]


# -- fusion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "whole", "narrow"),
    [
        (mlp, (12, 9), [(5, 2), (4, 4), (3, 3)]),
        (conv, (6, 8), [(2, 5), (4, 3)]),
        (normed, (8, 7), [(6, 3), (2, 4)]),
        (vit, (4, 12), [(1, 5), (2, 4), (1, 3)]),
        (gpt, (3,), [(2,), (1,)]),
    ],
)
def test_fused_models_compute_their_weighted_mean(
    tmp_path: Path, make: Make, whole: tuple[int, ...], narrow: list[tuple[int, ...]]
) -> None:
    models = [trained(make, sizes, seed) for seed, sizes in enumerate(narrow)]
    weights = [1.0, 3.0, 4.0][: len(models)]
    config = config_of(models=len(models), weights=weights)
    start, base, path, said = grown(tmp_path, make, whole, models, config)
    shares = [weight / sum(weights) for weight in weights]
    fused = base.model(path, start.check())
    assert assert_mean_of_parts(fused, models, shares, inputs_of(make)) < 1e-5
    assert f"fused from {len(models)} models" in said
    # Plain norms mix the models' statistics: that is measured and said, where they will be plain.
    assert ("but for" in said) == (make in (normed, vit, gpt))
    handoff = config.handoff.model_copy(update={"norms": "grouped"})
    config = config.model_copy(update={"handoff": handoff})
    assert "but for" not in grown(tmp_path, make, whole, models, config)[3]


@pytest.mark.parametrize(
    ("start", "mean"), [({}, "their mean"), ({"weights": [1.0, 3.0]}, "their weighted mean")]
)
def test_a_mean_is_called_weighted_where_somebody_gave_weights(
    tmp_path: Path, start: dict[str, Any], mean: str
) -> None:
    models = [trained(mlp, (6, 4), seed) for seed in range(2)]
    said = grown(tmp_path, mlp, (12, 8), models, config_of(models=2, **start))[3]
    assert mean in said


def test_one_model_as_wide_as_the_base_is_simply_taken(tmp_path: Path) -> None:
    model = trained(vit, (2, 6), 0)
    for grow in ("fuse", "widen"):
        _, _, path, said = grown(tmp_path, vit, (2, 6), [model], config_of(grow))
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in load_tensors(path).items())
        assert "but for" not in said


def test_a_model_of_mode_residual_keeps_its_function_in_any_mode(tmp_path: Path) -> None:
    """Its scales are 1/K; those of the base are 1, or 1/K of another K: weights make up for it."""
    models = [trained(mlp, (6, 4), seed) for seed in range(2)]
    for model, scale in zip(models, (0.25, 1.0), strict=True):
        model.get_buffer("linear2.scale").fill_(scale)
    for parts, scale in (("rounds = 0", 1.0), ("mode = 'residual', count = 5", 0.2)):
        config = config_of(models=2, parts=parts)
        start, base, path, _ = grown(tmp_path, mlp, (12, 8), models, config)
        assert start.scale == load_tensors(path)["linear2.scale"] == pytest.approx(scale)
        found = base.model(path)
        assert assert_mean_of_parts(found, models, [0.5, 0.5], inputs_of(mlp)) < 1e-5
        wide, wider = config_of("widen", parts=parts), tmp_path / "wider"
        wider.mkdir(exist_ok=True)
        _, base, path, said = grown(wider, mlp, (9, 4), models[:1], wide)
        torch.testing.assert_close(
            outputs(base.model(path), inputs_of(mlp)), outputs(models[0], inputs_of(mlp))
        )
        assert "but for" not in said


# -- widening --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "wide", "narrow"),
    [
        (mlp, (11, 7), (4, 5)),
        (conv, (5, 9), (3, 4)),
        (normed, (12, 8), (6, 4)),
        (normed, (6, 12), (6, 4)),
        (vit, (4, 11), (2, 5)),
        (gpt, (3,), (1,)),
    ],
)
def test_a_widened_model_computes_the_same(
    tmp_path: Path, make: Make, wide: tuple[int, ...], narrow: tuple[int, ...]
) -> None:
    """Normed axes are copied equally often here, others as it comes."""
    model = trained(make, narrow, 2)
    _, base, path, said = grown(tmp_path, make, wide, [model], config_of("widen"))
    found = outputs(base.model(path), inputs_of(make))
    torch.testing.assert_close(found, outputs(model, inputs_of(make)), rtol=0, atol=2e-5)
    assert said.endswith("are what it computes")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=4))
def test_any_chain_is_widened_to_any_width(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    narrow, wide = [n for n, _ in sizes], [n + more for n, more in sizes]

    def make(*widths: int) -> nn.Module:
        return Mlp(64, widths, 3)

    model = trained(make, narrow, 1)
    _, base, path, _ = grown(folder, make, wide, [model], config_of("widen"))
    found = outputs(base.model(path), inputs_of(make))
    torch.testing.assert_close(found, outputs(model, inputs_of(make)), rtol=1e-4, atol=1e-4)


def test_a_unit_becomes_every_nth_and_what_reads_it_is_divided(tmp_path: Path) -> None:
    model = trained(mlp, (2, 2), 0)
    _, _, path, _ = grown(tmp_path, mlp, (5, 2), [model], config_of("widen"))
    old, new = model.state_dict(), load_tensors(path)
    source, copies = [0, 1, 0, 1, 0], torch.tensor([3, 2, 3, 2, 3])
    assert torch.equal(new["linear1.weight"], old["linear1.weight"][source])
    assert torch.equal(new["linear1.bias"], old["linear1.bias"][source])
    assert torch.equal(new["linear2.weight"], old["linear2.weight"][:, source] / copies)
    assert torch.equal(new["head.weight"], old["head.weight"])


@pytest.mark.parametrize(
    ("make", "wide", "narrow"),
    [(normed, (9, 4), (6, 4)), (vit, (3, 6), (2, 6)), (tied, (8,), (4,))],
)
def test_where_widening_is_not_exact_the_difference_is_measured_and_said(
    tmp_path: Path,
    make: Make,
    wide: tuple[int, ...],
    narrow: tuple[int, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = trained(make, narrow, 2)
    with caplog.at_level(logging.WARNING):
        _, base, path, said = grown(tmp_path, make, wide, [model], config_of("widen"))
    inputs = (characters() if make is tied else images()).tensors[0]
    expected = outputs(model, inputs)
    error = (outputs(base.model(path), inputs) - expected).abs().max()
    assert said.endswith(f"but for {error:.2g}")
    assert "exact are models without norms over a widened axis" in caplog.text


def test_noise_parts_the_copies_by_the_seed_and_only_those(tmp_path: Path) -> None:
    model = trained(mlp, (4, 4), 0)
    config = config_of("widen", noise=0.1)
    found = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        seeded = config.model_copy(update={"seed": seed})
        _, _, path, said = grown(tmp_path / folder, mlp, (8, 4), [model], seeded)
        found.append(load_tensors(path))
        assert "but for" in said
    first, again, other = found
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["linear1.weight"], other["linear1.weight"])
    assert (first["linear1.weight"][:4] != first["linear1.weight"][4:]).all()
    assert torch.equal(first["linear1.bias"][:4], first["linear1.bias"][4:])
    assert torch.equal(first["head.weight"], model.state_dict()["head.weight"])  # not widened
    spread = (first["linear1.weight"][:4] - model.state_dict()["linear1.weight"]).std()
    assert spread == pytest.approx(0.1 * float(model.state_dict()["linear1.weight"].std()), rel=0.2)


def test_what_sums_over_its_input_is_known_by_the_kind_of_module() -> None:
    class Conv1D(nn.Module):
        """As transformers' for GPT-2: (in, out)."""

        nf = nx = 2

    assert reading_dim(nn.Linear(2, 2)) == reading_dim(nn.Conv1d(1, 1, 1)) == 1
    assert reading_dim(nn.MultiheadAttention(4, 2)) == 1
    assert reading_dim(nn.ConvTranspose2d(1, 1, 1)) == reading_dim(Conv1D()) == 0
    for module in (nn.Embedding(2, 2), nn.LayerNorm(2), nn.BatchNorm2d(2), nn.Module()):
        assert reading_dim(module) is None


def test_transposed_weights_and_fused_attention_are_widened_exactly(tmp_path: Path) -> None:
    class Attending(nn.Module):
        def __init__(self, heads: int) -> None:
            super().__init__()
            width = 4 * heads
            self.embed = nn.ConvTranspose2d(1, width, 1)
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            self.up = nn.ConvTranspose1d(width, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images[:, :, :2]).flatten(2).transpose(1, 2)
            found, _ = self.attention(tokens, tokens, tokens, need_weights=False)
            mixed: Tensor = self.up(found.transpose(1, 2)).mean(-1)
            return mixed

        def width_groups(self) -> Widths:
            heads, width = self.attention.num_heads, self.attention.embed_dim
            stream = Axis(self, "stream", width, "stream").held_by("embed.weight", 1)
            stream.held_by("embed.bias", 0).held_by("attention.in_proj_weight", 1)
            stream.held_by("attention.out_proj.weight", 0).held_by("attention.out_proj.bias", 0)
            stream.held_by("up.weight", 0).counted_by("attention", "embed_dim")
            inner = Axis(self, "heads", heads, "hidden")
            inner.held_by("attention.in_proj_weight", 0, 4, (0, width, 2 * width))
            inner.held_by("attention.in_proj_bias", 0, 4, (0, width, 2 * width))
            inner.held_by("attention.out_proj.weight", 1, 4)
            inner.counted_by("attention", "num_heads")
            return Widths((stream.done(), inner.done()))

    model = trained(Attending, (2,), 0)
    task = task_of(Attending, 4)
    base = Base(task, CPU)
    base.initial(tmp_path / "fresh", 0, 1.0)
    with ExitStack() as files:
        path = save(tmp_path / "m", model)
        opened = open_model(path, base, NAME, 1.0, files)
        widened = Widened(base.shape, base.widths, opened, 0.0, 0)
        write_merged(tmp_path / "fresh", widened, tmp_path / "base", {})
    found = outputs(base.model(tmp_path / "base"), inputs_of(Attending))
    torch.testing.assert_close(found, outputs(model, inputs_of(Attending)), rtol=0, atol=1e-5)


# -- what does not fit -----------------------------------------------------------------------------


def refusal(
    tmp_path: Path, models: Sequence[nn.Module], config: RunConfig, *sizes: int, make: Make = mlp
) -> tuple[type[PartsumError], str]:
    paths = [save(tmp_path / f"m{k}.safetensors", model) for k, model in enumerate(models)]
    with pytest.raises(PartsumError) as caught:
        Start(config, Base(task_of(make, *sizes), CPU), paths).check()
    return caught.type, str(caught.value)


def test_shapes_that_are_no_narrower_bases_are_refused_by_tensor(tmp_path: Path) -> None:
    one = config_of("widen")
    kind, said = refusal(tmp_path, [Mlp(64, [4, 5, 6], 3)], one, 8, 8)
    assert kind is WidthError
    assert "it has, beside the base's, 'head.scale', 'linear3.bias', 'linear3.weight'" in said
    assert "it lacks" in refusal(tmp_path, [Mlp(64, [4], 3)], one, 8, 8)[1]
    kind, said = refusal(tmp_path, [mlp(9, 4)], one, 8, 8)
    assert "wider than the base: tensor 'linear1.weight' has the shape [9, 64], and [8, 64]" in said
    strange = mlp(4, 4)
    fifth = nn.Parameter(torch.zeros(4, 5))
    strange.get_submodule("linear2").register_parameter("weight", fifth)
    said = refusal(tmp_path, [strange], one, 8, 8)[1]
    assert "tensor 'linear2.weight' has the shape [4, 5]" in said
    assert "would have to be [4, 4] ([8, 8] in the base)" in said
    said = refusal(tmp_path, [Vit(8, 4, 6, 2, 2, 6, 3)], one, 4, 12, make=vit)[1]
    assert "has to be a multiple of 12" in said
    assert "'blocks.0.heads'" in said
    said = refusal(tmp_path, [mlp(4, 4).double()], one, 8, 8)[1]
    assert "is torch.float64, but the base's is torch.float32" in said
    said = refusal(tmp_path, [Mlp(64, [4, 4], 5)], one, 8, 8)[1]
    assert "'head." in said


def test_widths_that_do_not_add_up_or_are_not_the_parts_are_refused(tmp_path: Path) -> None:
    models = [mlp(4, 4), mlp(4, 3)]
    said = refusal(tmp_path, models, config_of(models=2), 8, 8)[1]
    assert "4 + 3 = 7 units of width group 'linear2', but the base has 8" in said
    models = [mlp(5, 4), mlp(3, 4)]
    said = refusal(tmp_path, models, config_of(models=2, parts="count = 2"), 8, 8)[1]
    assert "part 0 has 4 units of width group 'linear1', but m0.safetensors" in said
    assert "set parts.fractions" in said
    fitting = config_of(models=2, parts="count = 2, fractions = [0.6, 0.4]")
    refused = refusal(tmp_path, models, fitting, 8, 8)[1]  # 5 and 3, but 5 and 3 there, too
    assert "'linear2'" in refused


def test_files_that_are_not_what_they_should_be_are_refused(tmp_path: Path) -> None:
    base = Base(task_of(mlp, 8, 8), CPU)
    path = tmp_path / "m.safetensors"

    def refused() -> tuple[type[PartsumError], str]:
        with ExitStack() as files, pytest.raises(PartsumError) as caught:
            open_model(path, base, NAME, 1.0, files)
        return caught.type, str(caught.value)

    assert refused() == (
        ConfigError,
        f"start.models: cannot read {path}: No such file or directory",
    )
    path.write_bytes(b"not tensors at all")
    assert refused()[0] is WireError
    save(path, mlp(4, 4))
    path.write_bytes(path.read_bytes()[:-1])
    assert refused()[0] is WireError
    save(path, mlp(4, 4), task="another.tasks:one")
    assert refused()[0] is TaskError
    assert "trained on the task another.tasks:one" in refused()[1]
    save(path, mlp(4, 4), task=NAME, norms="grouped", norm_parts="[{}]")
    assert 'norms = "grouped"' in refused()[1]
    save(path, mlp(4, 4), task=NAME, norms="plain")
    with ExitStack() as files:
        opened = open_model(path, base, NAME, 1.0, files)
    assert opened.part.units == {"linear1": (0, 1, 2, 3), "linear2": (0, 1, 2, 3)}


def test_a_model_that_has_diverged_is_refused(tmp_path: Path) -> None:
    model = trained(mlp, (4, 4), 0)
    model.get_parameter("head.bias").data[0] = torch.nan
    with pytest.raises(WidthError, match=r"m0.safetensors computes numbers that are not finite"):
        grown(tmp_path, mlp, (8, 8), [model], config_of("widen"))
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("start = { models = ['a', 'b'], grow = 'widen' }", "takes one model, and there are 2"),
        ("start = { models = ['a'], grow = 'widen', weights = [1.0] }", "weights means nothing"),
        ("start = { models = ['a'], noise = 0.1 }", "noise means nothing"),
        ("start = { models = ['a', 'b'], weights = [1.0] }", "1 entries, but there are 2 models"),
        ("start = { models = ['a'], grow = 'widen' }", "in mode block each part is a model"),
        ("start = { models = ['a', 'b'] }", "parts.count is 4"),
        (
            "start = { models = ['a'] }\nparts = { count = 1, fractions = 'measured' }",
            "as wide as they are",
        ),
        ("start = { models = ['a'] }\nparts = { mode = 'copies' }", "made anew of copies"),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_words(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config(text)


def test_a_start_without_models_is_none() -> None:
    assert parse_config("").start.models == []
