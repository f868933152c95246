"""Every rule, from updates in the spool to the next base, with one of five nodes lying."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.test_workshop import CPU, TASK, close_round, deliver, opened, samples, train

from partsum.coordinator.base import Base
from partsum.coordinator.cutter import base_name, write_clusters
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.coordinator.workshop import Workshop
from partsum.shared.config import RunConfig, parse_config
from partsum.shared.part import index_map
from partsum.shared.tensors import load_tensors, save_tensors

PLAN = Workplan((0.2,) * 5, ("",) * 5, 0.25)
MODES = {
    "full": "planner = 'full'",
    "residual": "mode = 'residual'",
    "gradients": "planner = 'full', aggregate = 'gradients'",
}
WAYS = pytest.mark.parametrize("mode", MODES)


def config_of(mode: str, rule: str, **merge: Any) -> RunConfig:
    more = "".join(f", {key} = {value}" for key, value in merge.items())
    return parse_config(
        f"parts = {{ count = 5, rounds = 2, {MODES[mode]} }}\n"
        f"merge = {{ rule = '{rule}', norm_bound = 0.0{more} }}"
    )


def merged(folder: Path, config: RunConfig, liar: int | None) -> tuple[Workshop, Path]:
    """One round, in which a liar's update is a thousand times as far off as the others'."""
    with closing(Store(folder)) as store:
        shop = Workshop(config, store, Base(TASK, CPU), samples(), samples())
        shop.first_base.write()
        write_clusters(folder / "clusters", [np.arange(k, 40, 5) for k in range(5)])
        plan = opened(shop, PLAN, 0)
        for k in range(5):
            deliver(shop, plan, k)
            if k == liar:
                path, start = shop.update_path(0, k), train(shop, plan, k)
                lies = {n: t + 100 if t.is_floating_point() else t for n, t in start.items()}
                save_tensors(path, lies, durable=False)
                change = shop.inspector.check(path, plan, k)
                shop.store.take_update("liar", store.updates(0)[k].update, 0.0, change)
        close_round(shop, plan)
        return shop, store.base_path(base_name(1))


@WAYS
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_a_liar_among_five_moves_nothing_that_all_of_them_hold(
    tmp_path: Path, rule: str, mode: str
) -> None:
    config = config_of(mode, rule)
    shop, honest = merged(tmp_path / "honest", config, liar=None)
    _, lied = merged(tmp_path / "lied", config, liar=3)
    before, after = load_tensors(honest), load_tensors(lied)
    with closing(Store(tmp_path / "lied")) as store:
        plan = store.plan(0)
    assert plan is not None
    cut = set().union(*(index_map(shop.base.widths, p.part) for p in plan.parts))
    assert bool(cut) == (mode == "residual")
    shared = [name for name in shop.base.trained if name not in cut]
    assert shared
    for name in shared:
        assert (after[name] - before[name]).abs().max() < 0.2


@WAYS
def test_a_clipped_liar_moves_the_base_no_further_than_an_honest_node(
    tmp_path: Path, mode: str
) -> None:
    _, honest = merged(tmp_path / "honest", config_of(mode, "norm_clip"), liar=None)
    _, lied = merged(tmp_path / "lied", config_of(mode, "norm_clip"), liar=3)
    _, trusting = merged(tmp_path / "trusting", config_of(mode, "mean"), liar=3)
    base, clipped, mean = (load_tensors(path) for path in (honest, lied, trusting))
    for name in ("6.bias", "6.weight"):
        assert (clipped[name] - base[name]).abs().max() < 0.2
        if mode != "gradients":  # there AdamW's step hides how long the gradient was
            assert (mean[name] - base[name]).abs().max() > 5


@pytest.mark.parametrize("rule", ["norm_clip", "median", "trimmed_mean", "krum", "multi_krum"])
def test_the_same_updates_give_the_same_bytes(tmp_path: Path, rule: str) -> None:
    config = config_of("residual", rule)
    once, again = (merged(tmp_path / name, config, liar=1)[1] for name in "ab")
    assert once.read_bytes() == again.read_bytes()


def test_a_part_that_starts_from_its_seed_is_compared_with_just_that(tmp_path: Path) -> None:
    """Mode block: what the coordinator draws again is what the node began with."""
    config = parse_config("parts = { count = 5, rounds = 2 }")
    with closing(Store(tmp_path)) as store:
        shop = Workshop(config, store, Base(TASK, CPU), samples(), samples())
        shop.first_base.write()
        write_clusters(tmp_path / "clusters", [np.arange(k, 40, 5) for k in range(5)])
        plan = opened(shop, PLAN, 0)
        for k in range(5):
            deliver(shop, plan, k)  # the seed's weights, each a little larger: by 0.05 on average
        changes = store.changes(0)
        assert all(0.04 < change.mean < 0.08 for change in changes.values())
        torch.manual_seed(5)
        assert shop.inspector.outliers(plan, ()) == []
        state = torch.random.get_rng_state()
        shop.inspector.check(shop.update_path(0, 1), plan, 1)
        assert torch.equal(torch.random.get_rng_state(), state)
