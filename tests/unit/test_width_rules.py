"""The rules that find width groups, on every kind of model that comes with a promise.

Each is cut into four complementary parts, hidden axes alone and everything, certified, trained for
a step, and merged.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.width_models import ADDED, MODELS, scaled
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.invariants import assert_mean_of_parts, certify
from partsum.coordinator.merge import AVERAGE, BLOCK, Contribution, Tensors, merge_state
from partsum.coordinator.planner import equal_fractions, plan_parts
from partsum.node.model import build_part
from partsum.shared.config import PartsConfig
from partsum.shared.errors import TaskError, WidthError
from partsum.shared.norms import group_norms
from partsum.shared.part import Part, cut_module, fresh_module, index_map, region
from partsum.shared.task import Task
from partsum.shared.width import find_widths, registry, with_scales
from partsum.shared.width.scaled import readers

COUNT = 4
CPU = torch.device("cpu")
kinds = pytest.mark.parametrize("kind", MODELS)
cuts = pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, "residual") for kind in MODELS] + [(k, "block") for k, m in MODELS.items() if m.block],
)


def batch(kind: str) -> TensorDataset:
    inputs = MODELS[kind].inputs()
    return TensorDataset(inputs, torch.zeros(len(inputs)))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - 1).square().mean()


@functools.cache
def base_of(kind: str, mode: str) -> Base:
    make = functools.partial(scaled, kind) if mode == "residual" else MODELS[kind].make
    data = functools.partial(batch, kind)
    return Base(Task(make, data, data, loss), CPU)


def parts_of(base: Base, mode: str, count: int = COUNT) -> list[Part]:
    config = PartsConfig.model_validate({"mode": mode, "count": count})
    return plan_parts(config, base.widths, equal_fractions(count), 0, 0)


def trained(base: Base, part: Part, seed: int, inputs: Tensor) -> nn.Module:
    """A part from its own seed, after a step."""
    model = fresh_module(cut_module(base.task.model(), base.widths, part), seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    base.task.loss(model(inputs), torch.zeros(1)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for name, parameter in model.named_parameters():
        if "experts" not in name:  # of which a batch chooses some
            assert parameter.grad is not None, name
            assert bool(parameter.isfinite().all()), name
    return model.eval()


def contributions(parts: list[Part], models: list[nn.Module]) -> list[Contribution]:
    states = (Tensors(model.state_dict()) for model in models)
    return [Contribution(part, state, 1.0) for part, state in zip(parts, states, strict=True)]


@kinds
def test_every_layer_has_the_groups_that_its_kind_promises(kind: str) -> None:
    hidden = [g for g in base_of(kind, "residual").widths.groups if g.depth == "hidden"]
    for ending, units in MODELS[kind].units.items():
        found = [g.units for g in hidden if g.name.endswith(ending)]
        assert set(found) == {units}, ending
    endings = tuple(MODELS[kind].units)
    assert [g.name for g in hidden if not g.name.endswith(endings)] == []


@cuts
def test_a_cut_model_computes_what_the_base_does_without_the_other_units(
    kind: str, mode: str
) -> None:
    base = base_of(kind, mode)
    certify(base, parts_of(base, mode), mode == "block", batch(kind))


@cuts
def test_every_element_is_covered_once_or_shared_and_goes_back_to_where_it_was(
    kind: str, mode: str
) -> None:
    base = base_of(kind, mode)
    parts, model = parts_of(base, mode), base.task.model()
    times = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    for kept in (index_map(base.widths, part) for part in parts):
        for name, count in times.items():
            count[region(count, kept.get(name, {}))] += 1
    cut_dims = {name: len(dims) for name, dims in index_map(base.widths, parts[0]).items()}
    for name, count in times.items():
        expected = {0: {float(COUNT)}, 1: {1.0}, 2: {0.0, 1.0}}[cut_dims.get(name, 0)]
        assert set(count.flatten().tolist()) == expected, name
    state = model.state_dict()
    cut = [cut_module(model, base.widths, part) for part in parts]
    merged = merge_state(state, contributions(parts, cut), base.widths, AVERAGE)
    assert all(torch.equal(merged[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("kind", [kind for kind, model in MODELS.items() if model.block])
def test_in_mode_block_trained_parts_merge_to_their_mean(kind: str) -> None:
    base, inputs = base_of(kind, "block"), MODELS[kind].inputs()
    parts = parts_of(base, "block")
    models = [trained(base, part, seed, inputs) for seed, part in enumerate(parts)]
    merged = group_norms(fresh_module(base.task.model(), 9), base.widths, parts)
    state = merge_state(merged.state_dict(), contributions(parts, models), base.widths, BLOCK)
    merged.load_state_dict(state)
    assert_mean_of_parts(merged.eval(), models, [1 / COUNT] * COUNT, inputs)


@kinds
def test_in_mode_residual_trained_parts_merge_to_branches_that_are_their_mean(kind: str) -> None:
    base, inputs = base_of(kind, "residual"), MODELS[kind].inputs()
    parts = parts_of(base, "residual")
    models = [trained(base, part, seed, inputs) for seed, part in enumerate(parts)]
    merged = fresh_module(base.task.model(), 9)
    old = merged.state_dict()
    for name in base.widths.scales:
        old[name] = torch.full((), 1 / COUNT)
    state = merge_state(old, contributions(parts, models), base.widths, AVERAGE)
    merged.load_state_dict(state)
    assert bool(merged.eval()(inputs).isfinite().all())
    adding = [p for p in readers(merged, base.widths.groups) if f"{p}.weight" in state]
    assert len(base.widths.scales) >= len(adding) > 0
    for path in adding:
        module = merged.get_submodule(path)
        dims = index_map(base.widths, parts[0])[f"{path}.weight"]
        read = torch.randn(2, state[f"{path}.weight"].shape[next(iter(dims))])
        outputs = []
        for part, model in zip(parts, models, strict=True):
            (index,) = index_map(base.widths, part)[f"{path}.weight"].values()
            outputs.append(model.get_submodule(path)(read[:, index]))
        torch.testing.assert_close(module(read), torch.stack(outputs).mean(dim=0))


@kinds
def test_scales_change_no_output_and_no_name(kind: str) -> None:
    plain = fresh_module(MODELS[kind].make(), 5).eval()
    found = with_scales(MODELS[kind].make()).eval()
    missing, unexpected = found.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) <= set(find_widths(found).scales)
    assert unexpected == []
    torch.testing.assert_close(found(MODELS[kind].inputs()), plain(MODELS[kind].inputs()))


@pytest.mark.parametrize("kind", ["llama", "gpt2, tied", "t5", "encoder, post-norm"])
def test_a_fresh_part_has_its_seeds_bytes_whatever_was_there_before(kind: str) -> None:
    base = base_of(kind, "residual")
    part = parts_of(base, "residual")[1]

    def state(seed: int, before: float) -> dict[str, Tensor]:
        model = cut_module(base.task.model(), base.widths, part)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(before)
        return fresh_module(model, seed).state_dict()

    one, again, other = state(1, 7.0), state(1, 8.0), state(2, 7.0)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", [k for k in MODELS if k not in ("mlp", "vit", "gpt")])
def test_a_node_builds_the_part_that_the_coordinator_does(kind: str) -> None:
    base, devices = base_of(kind, "residual"), []

    def make() -> nn.Module:
        devices.append(torch.empty(0).device.type)
        return scaled(kind)

    part = parts_of(base, "residual")[1]
    found = build_part(make, part, 5, None).module.eval()
    assert devices == ["meta"], "the base took memory"
    expected = base.fresh_part(part, 5)
    state = found.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    inputs = MODELS[kind].inputs()
    whole = base.part_model(part, Tensors(expected))
    torch.testing.assert_close(found(inputs), whole(inputs))


def test_a_unit_of_grouped_query_attention_is_a_key_head_with_its_query_heads() -> None:
    base = base_of("llama", "block")
    heads = next(g for g in base.widths.groups if g.name.endswith("0.self_attn.heads"))
    blocks = {slot.tensor.split(".")[-2]: slot.block for slot in heads.slots}
    assert blocks == {"q_proj": 8, "k_proj": 4, "v_proj": 4, "o_proj": 8}


def test_a_config_that_modules_share_is_copied_before_a_count_in_it_is_mended() -> None:
    base = base_of("phi3", "block")
    model = base.task.model()
    part = Part({"inner.model.layers.0.self_attn.heads": (0, 5)})
    cut = cut_module(model, base.widths, part)
    layers = [f"inner.model.layers.{k}.self_attn" for k in range(2)]
    configs = [cut.get_submodule(path).config for path in layers]
    assert [config.num_attention_heads for config in configs] == [4, 16]  # type: ignore[union-attr]
    whole = model.get_submodule(layers[0]).config
    assert whole.num_attention_heads == 16  # type: ignore[union-attr]


def test_what_cannot_be_cut_is_said_with_its_name_and_the_reason() -> None:
    widths = base_of("deepseek", "residual").widths
    reasons = {kept.tensor.removeprefix("inner.model."): kept.reason for kept in widths.left_out}
    assert "chooses experts by the whole stream" in reasons["layers.1.mlp.gate.weight"]
    latent = reasons["layers.0.self_attn.kv_a_proj_with_mqa.weight"]
    assert "rotary key in its last 4 rows" in latent
    assert reasons["embed_tokens.weight"] == "it is of the stream, which stays whole"
    with pytest.raises(WidthError, match=r'q_a_proj.weight stays whole.*mode = "residual"'):
        parts_of(base_of("deepseek", "block"), "block")


def test_without_scales_mode_residual_says_how_to_get_them() -> None:
    with pytest.raises(WidthError, match=r"with_scales\(model\)"):
        parts_of(base_of("llama", "block"), "residual")


def test_a_head_that_is_an_embedding_too_is_read_out_by_the_norm_before_it() -> None:
    assert base_of("llama", "block").widths.readouts == ("inner.lm_head.weight",)
    assert base_of("llama, tied", "block").widths.readouts == ("inner.model.norm.weight",)
    stream = base_of("llama, tied", "block").widths.group("stream")
    tied = {"inner.lm_head.weight", "inner.model.embed_tokens.weight"}
    assert tied <= {slot.tensor for slot in stream.slots}


def test_a_wrong_readout_does_not_pass_the_certificate() -> None:
    base = Base(base_of("llama, tied", "block").task, CPU)
    base.widths = type(base.widths)(
        base.widths.groups, ("inner.model.layers.0.input_layernorm.weight",)
    )
    with pytest.raises(WidthError, match=r"mean of its parts.*do not weigh its output"):
        certify(base, parts_of(base, "block"), True, batch("llama, tied"))


def test_a_model_that_returns_no_tensor_is_told_to_be_wrapped() -> None:
    task = base_of("llama", "block").task
    unwrapped = replace(task, model=lambda: MODELS["llama"].make().get_submodule("inner"))
    base = Base(unwrapped, CPU)
    with pytest.raises(TaskError, match=r"returns CausalLMOutput\w+, and must return a tensor"):
        certify(base, parts_of(base, "block"), True, batch("llama"))


def test_the_rule_that_the_documentation_adds_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_rules", list(registry._rules))
    page = Path(__file__).parents[2] / "docs" / "widths.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    kind = "gpt-neox"
    assert "several layers read the stream" in find_widths(ADDED[kind].make()).block_refusal
    exec(compile(block, page.name, "exec"), {})
    data = functools.partial(TensorDataset, ADDED[kind].inputs(), torch.zeros(3))
    base = Base(Task(ADDED[kind].make, data, data, loss), CPU)
    names = {group.name.rpartition(".")[2] for group in base.widths.groups}
    assert names == {"stream", "heads", "hidden"}
    certify(base, parts_of(base, "block"), True, data())


def test_a_model_whose_head_is_missing_is_refused_in_mode_block() -> None:
    hf = pytest.importorskip("transformers")
    config = hf.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    widths = find_widths(hf.BertModel(config, add_pooling_layer=False))
    assert widths.block_refusal.endswith("the model's output is the stream itself")
