"""The rules find the gates of models that people use, and the certificate holds for each."""

from __future__ import annotations

import pytest
import torch
from tests.width_models import MODELS, Classifier, Kind, hf
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.gate_certificate import certify_gates
from partsum.coordinator.gate_table import gate_rows
from partsum.shared.messages import Part
from partsum.shared.part import cut_module
from partsum.shared.task import Task

GATES = {
    "gpt2, tied": ["h.{}.attn", "h.{}.mlp"],
    "llama": ["layers.{}.self_attn", "layers.{}.mlp"],
    "llama, tied": ["layers.{}.self_attn", "layers.{}.mlp"],
    "phi3": ["layers.{}.self_attn", "layers.{}.mlp"],
    "deepseek": ["layers.{}.self_attn", "layers.{}.mlp"],
    "bert": [],
    "t5": [],
}


def loss(outputs: Tensor, _targets: Tensor) -> Tensor:
    return outputs.square().mean()


def resnet() -> nn.Module:
    config = hf.ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8, 12],
        depths=[2, 2],
        layer_type="basic",
        num_labels=3,
    )
    return Classifier(hf.ResNetForImageClassification(config))


OTHERS = {"hugging face's resnet": Kind(resnet, {}, inputs=lambda: torch.randn(3, 1, 32, 32))}


def base_of(kind: str) -> tuple[Base, TensorDataset]:
    model = {**MODELS, **OTHERS}[kind]
    inputs = model.inputs()
    samples = TensorDataset(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    task = Task(model.make, lambda: samples, lambda: samples, loss)
    return Base(task, torch.device("cpu")), samples


@pytest.mark.parametrize("kind", GATES)
def test_each_branch_of_each_block_is_a_gate_that_is_certified(kind: str) -> None:
    base, samples = base_of(kind)
    names = [gate.name for gate in base.widths.gates]
    ends = [name.format(layer) for layer in (0, 1) for name in GATES[kind]]
    assert len(names) == len(ends)
    assert all(name.endswith(f".{end}") for name, end in zip(names, ends, strict=True))
    certify_gates(base, names, samples)
    if names:
        part = Part(gates=dict.fromkeys(names, False))
        assert cut_module(base.task.model(), base.widths, part)(samples.tensors[0]).isfinite().all()


def test_blocks_of_hugging_faces_resnet_that_neither_stride_nor_widen_are_gates() -> None:
    base, samples = base_of("hugging face's resnet")
    names = [gate.name for gate in base.widths.gates]
    ends = ["stages.0.layers.0", "stages.0.layers.1", "stages.1.layers.1"]
    assert [name.partition("encoder.")[2] for name in names] == ends
    certify_gates(base, names, samples)


def test_a_table_of_gates_says_what_each_saves() -> None:
    base, _ = base_of("vit")
    rows = list(gate_rows(base, splits=3))
    assert [row.name for row in rows] == [
        *(f"blocks.{k}.{name}" for k in (0, 1) for name in ("attention", "mlp")),
        *(f"blocks.{k}.hidden+{place}/3" for k in (0, 1) for place in (1, 2)),
    ]
    attention = 24 * 72 + 72 + 24 * 24 + 24 + 2 * 24
    assert rows[0].parameters == attention
    assert rows[0].modules == ("blocks.0.norm1", "blocks.0.attention")
    assert (rows[-1].kind, rows[-1].parameters) == ("partial", 0)
