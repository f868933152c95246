"""Rounds of a fixed structure: the branch travels nowhere, and the base is scored without it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.cutter import base_name, blob_of, write_clusters
from partsum.coordinator.handoff import HandoffJob
from partsum.coordinator.handoff_model import build_model
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.coordinator.workshop import Workshop
from partsum.node.model import build_part
from partsum.shared.config import GatesConfig, PartsConfig, PrivacyConfig, RunConfig, StartConfig
from partsum.shared.errors import UpdateRefusedError, WireError
from partsum.shared.gates import find_structure
from partsum.shared.messages import Part, Update
from partsum.shared.part import absent, cut_module
from partsum.shared.task import Task
from partsum.shared.tasks.residual import ResidualMlp
from partsum.shared.tensors import load_tensors, save_tensors

CPU = torch.device("cpu")
OFF = Part(gates={"blocks.1": False})
WAYS: dict[str, dict[str, Any]] = {
    "full": {"planner": "full"},
    "residual": {"mode": "residual"},
    "block": {"mode": "block"},
}


def samples() -> TensorDataset:
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def model() -> nn.Module:
    return ResidualMlp(4, 6, 8, 3, 2)


TASK = Task(model, samples, samples, nn.functional.cross_entropy)


def config_of(way: str) -> RunConfig:
    parts = PartsConfig(count=2, rounds=1, **WAYS[way])
    return RunConfig(seed=3, parts=parts, gates=GatesConfig(off=["blocks.1"]))


def workshop_of(config: RunConfig, store: Store) -> Workshop:
    shop = Workshop(config, store, Base(TASK, CPU), samples(), samples())
    shop.first_base.write()
    write_clusters(store.folder / "clusters", [np.arange(0, 40, 2), np.arange(1, 40, 2)])
    return shop


@pytest.mark.parametrize("way", WAYS)
def test_a_round_trains_and_scores_what_is_left(tmp_path: Path, way: str) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config_of(way), store)
        plan = shop.cutter.plan_round(Workplan((0.5, 0.5), ("", ""), 0.5), 0)
        store.open_round(plan, 0.0)
        gone = absent(shop.base.widths, OFF)
        for k, planned in enumerate(plan.parts):
            assert planned.part.off == ("blocks.1",)
            start = planned.start and shop.cutter.origin_paths(plan)[k]
            part = build_part(model, planned.part, planned.seed, start or None)
            state = {name: 2 * t for name, t in part.module.state_dict().items()}
            assert not gone & state.keys()
            path = shop.update_path(0, k)
            digest = save_tensors(path, state, durable=False)
            shop.inspector.check(path, plan, k)
            said = planned.start.digest if planned.start else ""
            blob = blob_of(path, digest)
            update = Update(f"r0-p{k}", 0, k, said, planned.num_samples, 0.5, 1.0, 1.0, 1, blob)
            store.take_update(f"node-{k}", update, 0.0)
        result, _ = shop.merge_round(plan, (), Stages())
        old, new = (load_tensors(store.base_path(base_name(k))) for k in (0, 1))
        assert all(torch.equal(old[name], new[name]) for name in gone)
        for name in new.keys() - gone:
            assert new[name].dim() < 2 or not torch.equal(old[name], new[name])
        scored = shop.base.model(store.base_path(base_name(1)), shop.norm_parts(plan), ["blocks.1"])
        assert result.loss == pytest.approx(shop.base.scores(scored, samples()).loss)


def test_an_update_with_a_branch_that_is_off_is_refused(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config_of("full"), store)
        plan = shop.cutter.plan_round(Workplan((0.5, 0.5), ("", ""), 0.5), 0)
        path = shop.update_path(0, 0)
        save_tensors(path, model().state_dict())
        with pytest.raises(UpdateRefusedError, match=r"blocks\.1"):
            shop.inspector.check(path, plan, 0)


def test_a_node_refuses_gates_that_its_model_does_not_have() -> None:
    with pytest.raises(WireError, match=r"no gate 'blocks\.7'"):
        build_part(model, Part(gates={"blocks.7": False}), 0, None)


@pytest.mark.parametrize("gates", [OFF.gates, {"blocks.0.hidden+1/2": False}])
def test_a_node_builds_a_structure_from_its_seed(gates: dict[str, bool]) -> None:
    part = Part(gates=gates)
    found = build_part(model, part, 5, None).module.state_dict()
    again = build_part(model, part, 5, None).module.state_dict()
    own = Base(TASK, CPU).fresh_part(part, 5)
    for name, tensor in found.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, own[name])


def test_the_hand_off_gets_the_structure_with_the_bases_weights(tmp_path: Path) -> None:
    base = model()
    save_tensors(tmp_path / "base.safetensors", base.state_dict())
    config = RunConfig()
    job = HandoffJob(
        task=config.task,
        base=tmp_path / "base.safetensors",
        folder=tmp_path,
        seed=0,
        deterministic=True,
        handoff=config.handoff,
        training=config.training,
        share=0.5,
        norm_parts=[],
        off=["blocks.1"],
    )
    built = build_model(job, TASK)
    expected = cut_module(base, find_structure(base), OFF)
    inputs = samples().tensors[0]
    assert torch.equal(built(inputs), expected(inputs))
    assert built.state_dict().keys() == expected.state_dict().keys()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"parts": PartsConfig(planner="full", aggregate="gradients")}, "parts.aggregate"),
        (
            {
                "parts": PartsConfig(planner="full"),
                "privacy": PrivacyConfig(secure_aggregation=True),
            },
            "no secure aggregation",
        ),
        ({"parts": PartsConfig(planner="structures")}, "gates.off to be empty"),
        (
            {"parts": PartsConfig(planner="relevance", mode="residual")},
            "the others look at units of the whole base",
        ),
        (
            {"parts": PartsConfig(count=1), "start": StartConfig(models=["small.safetensors"])},
            "no start.models in mode block",
        ),
    ],
)
def test_what_a_fixed_structure_cannot_go_with_is_refused(
    sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        RunConfig(gates=GatesConfig(off=["blocks.1"]), **sections)
