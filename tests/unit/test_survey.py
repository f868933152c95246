"""A run ranks its units once, before its first round, and goes by that whatever happens to it."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.cost import Cost
from partsum.coordinator.cutter import base_name, write_clusters
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.relevance.plan import ranking_flops, ranking_sentences
from partsum.coordinator.relevance.survey import findings
from partsum.coordinator.relevance.training import LeftError
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.coordinator.workshop import Workshop
from partsum.shared.config import PartsConfig, RunConfig
from partsum.shared.config.relevance import RelevanceConfig
from partsum.shared.errors import WidthError
from partsum.shared.files import file_digest
from partsum.shared.task import Task
from partsum.shared.tasks.mlp import Mlp
from partsum.shared.tensors import load_tensors
from partsum.shared.width import ScaledLinear, Slot, WidthGroup, Widths

EQUAL = Workplan((0.5, 0.5), ("", ""), 0.25)
FIRST = base_name(0)


def samples() -> TensorDataset:
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def model() -> nn.Module:
    return Mlp(6, [12], 2)


def task_of(make: Any) -> Task:
    return Task(make, samples, samples, nn.functional.cross_entropy)


def config_of(**relevance: Any) -> RunConfig:
    return RunConfig(
        seed=3,
        parts=PartsConfig(planner="relevance", mode="residual", count=2, rounds=4),
        relevance=RelevanceConfig(**{"epochs": 2.0, "shared": 0.25, **relevance}),
    )


def workshop_of(store: Store, config: RunConfig, make: Any = model) -> Workshop:
    shop = Workshop(config, store, Base(task_of(make), torch.device("cpu")), samples(), samples())
    shop.first_base.write()
    write_clusters(store.folder / "clusters", [np.arange(0, 64, 2), np.arange(1, 64, 2)])
    return shop


def first_round(folder: Path, config: RunConfig) -> tuple[RoundPlan, str]:
    with closing(Store(folder)) as store:
        shop = workshop_of(store, config)
        shop.first_base.rank_units()
        return shop.cutter.plan_round(EQUAL, 0), file_digest(store.base_path(FIRST))


@pytest.mark.parametrize("score", ["ard", "magnitude", "taylor", "activation"])
def test_units_are_ranked_by_each_score_and_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, score: str
) -> None:
    config = config_of(score=score)
    plan, digest = first_round(tmp_path / "a", config)
    assert first_round(tmp_path / "b", config) == (plan, digest)
    kept = [set(planned.part.units["linear1"]) for planned in plan.parts]
    assert len(kept[0] & kept[1]) == 3
    assert kept[0] | kept[1] == set(range(12))
    with closing(Store(tmp_path / "a")) as store:
        found = findings(store)
        assert found is not None
        strongest = sorted(range(12), key=lambda unit: -found.scores["linear1"][unit])[:3]
        assert kept[0] & kept[1] == set(strongest)
        assert (found.sparse != {}) == (score == "ard")
        assert store.fact("first_base") == digest


def test_a_restarted_coordinator_does_not_train_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = first_round(tmp_path, config_of())
    caplog.set_level(logging.INFO)
    assert first_round(tmp_path, config_of()) == expected
    assert "ranking units" not in caplog.text


def test_one_that_is_stopped_while_it_trains_begins_again_from_the_seed(tmp_path: Path) -> None:
    expected = first_round(tmp_path / "calm", config_of())
    folder = tmp_path / "stopped"
    with closing(Store(folder)) as store:
        shop = workshop_of(store, config_of())
        shop.first_base.survey.leave()
        with pytest.raises(LeftError):
            shop.first_base.rank_units()
        assert findings(store) is None
    assert first_round(folder, config_of()) == expected


def test_one_that_dies_between_the_base_and_its_journal_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    expected = first_round(tmp_path / "calm", config_of())
    with closing(Store(tmp_path / "killed")) as store:
        shop = workshop_of(store, config_of())
        shop.first_base.survey.train_base(store.base_path(FIRST))
    assert first_round(tmp_path / "killed", config_of()) == expected


def test_a_lost_first_base_is_trained_again_to_the_byte(tmp_path: Path) -> None:
    expected = first_round(tmp_path, config_of())
    (tmp_path / "bases" / FIRST).unlink()
    assert first_round(tmp_path, config_of()) == expected


def test_the_base_goes_on_from_its_training_and_keeps_the_scale_of_its_parts(
    tmp_path: Path,
) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(store, config_of())
        fresh = load_tensors(store.base_path(FIRST))
        shop.first_base.rank_units()
        trained = load_tensors(store.base_path(FIRST))
    assert trained.keys() == fresh.keys()
    assert not torch.equal(trained["linear1.weight"], fresh["linear1.weight"])
    assert float(trained["head.scale"]) == 0.5


def test_units_are_ranked_anew_when_that_is_due_and_else_stay_as_they_are(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(store, config_of(every=2))
        shop.first_base.rank_units()
        base = store.base_path(FIRST)
        assert shop.first_base.survey.facts(base, 1) == {"relevance": None}
        store.note(**shop.first_base.survey.facts(base, 2))
        found = findings(store)
        assert found is not None
        assert found.score == "taylor"
        assert shop.first_base.survey.facts(base, 3) == {"relevance": vars(found)}
        assert shop.first_base.survey.facts(base, 4) == {
            "relevance": vars(found)
        }  # nobody plans by it
        assert workshop_of(store, config_of()).first_base.survey.facts(base, 2) == {}


class Mixed(nn.Module):
    """A hidden group that ARD knows, and one whose weight is no layer's."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), ScaledLinear(4, 2))
        self.rows = nn.Parameter(torch.ones(4))
        self.chain.requires_grad_(trained)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.chain(inputs) + self.rows.sum()
        return outputs

    def width_groups(self) -> Widths:
        slots = (Slot("chain.0.weight", 0), Slot("chain.0.bias", 0), Slot("chain.2.weight", 1))
        known = WidthGroup("known", 4, "hidden", slots)
        unknown = WidthGroup("unknown", 4, "hidden", (Slot("rows", 0),))
        return Widths((known, unknown), scales=("chain.2.scale",))


def test_units_that_the_score_says_nothing_about_are_alike_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(store, config_of(), lambda: Mixed(trained=True))
        shop.first_base.rank_units()
        assert "ard says nothing about width group unknown" in caplog.text
        held = [planned.part.units["unknown"] for planned in shop.cutter.plan_round(EQUAL, 0).parts]
        assert set(held[0]) & set(held[1]) == {0}
        assert set(held[0]) | set(held[1]) == {0, 1, 2, 3}


def test_the_dry_run_says_who_is_ranked_how_and_what_that_takes() -> None:
    cost, config = Cost(100, 400, 1_000_000, 1600), config_of(every=3)
    assert ranking_flops(config, cost, 50_000) == 2 * 2 * 50_000 * 1_000_000  # means and variances
    (said,) = ranking_sentences(config, cost, 50_000)
    assert "trains the base for 2 epochs with ARD (200 GFLOP)" in said
    assert "again before every 3. round; every part holds the strongest 25%" in said
    assert "its share of the strong units" in ranking_sentences(config_of(shared=0.0), cost, 1)[0]
    assert ranking_sentences(RunConfig(), cost, 50_000) == []


def test_a_score_that_says_nothing_at_all_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(store, config_of(), lambda: Mixed(trained=False))
        with pytest.raises(WidthError, match=r'"ard" says nothing about any hidden.*"magnitude"'):
            shop.first_base.rank_units()
