"""Mode copies: one slice, trained by all, becomes every slice of the base."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.copies import CopyMerger, own_slice
from partsum.coordinator.cutter import write_clusters
from partsum.coordinator.merge import AVERAGE, Contribution, Merger, Tensors
from partsum.coordinator.planner.complement import equal_slices
from partsum.coordinator.store import Store
from partsum.coordinator.workplan import Workplan
from partsum.coordinator.workshop import Workshop
from partsum.shared.config import RunConfig, parse_config
from partsum.shared.errors import ConfigError, WidthError
from partsum.shared.messages import Update
from partsum.shared.part import cut_module, fresh_module
from partsum.shared.task import Task
from partsum.shared.tensors import load_tensors, save_tensors
from partsum.shared.width import find_widths


def model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.ReLU(),
        nn.Linear(8, 16),
        nn.LayerNorm(16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


WIDTHS = find_widths(model())


def slice_model(seed: int, count: int) -> nn.Module:
    return fresh_module(cut_module(model(), WIDTHS, equal_slices(WIDTHS, count)[0]), seed)


def base_of(states: list[dict[str, Tensor]], count: int, seed: int | None) -> dict[str, Tensor]:
    slices = equal_slices(WIDTHS, count)
    shares = [Contribution(slices[0], Tensors(state), 1.0) for state in states]
    merger = CopyMerger(Merger(WIDTHS, shares, AVERAGE), WIDTHS, slices, seed)
    return {name: merger.merge(name, old) for name, old in model().state_dict().items()}


def outputs(state: dict[str, Tensor]) -> Tensor:
    whole = model()
    whole.load_state_dict(state)
    found: Tensor = whole(torch.linspace(-1, 1, 20).view(5, 4))
    return found


@given(seed=st.integers(0, 99), count=st.sampled_from([1, 2, 4, 8]))
def test_a_base_of_copies_computes_what_its_slice_computes(seed: int, count: int) -> None:
    narrow = slice_model(seed, count)
    state = dict(narrow.state_dict())
    base = base_of([state], count, None)
    expected = narrow(torch.linspace(-1, 1, 20).view(5, 4))
    torch.testing.assert_close(outputs(base), expected, atol=1e-5, rtol=1e-5)
    back = own_slice(base, WIDTHS, equal_slices(WIDTHS, count)[0], count)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_nodes_slices_are_averaged() -> None:
    states = [dict(slice_model(seed, 4).state_dict()) for seed in (1, 2)]
    back = own_slice(base_of(states, 4, None), WIDTHS, equal_slices(WIDTHS, 4)[0], 4)
    for name in back:
        torch.testing.assert_close(back[name], (states[0][name] + states[1][name]) / 2)


def test_copies_that_are_handed_off_differ_a_little_and_the_same_each_time() -> None:
    state = dict(slice_model(0, 4).state_dict())
    calm, noisy, again = (base_of([state], 4, seed) for seed in (None, 7, 7))
    assert all(torch.equal(noisy[name], again[name]) for name in noisy)
    first, second = noisy["2.weight"][:4, :2], noisy["2.weight"][4:8, 2:4]
    assert not torch.equal(first, second)
    spread = state["2.weight"].std()
    assert (first - second).std() < spread
    assert torch.equal(noisy["0.bias"], calm["0.bias"])
    assert not noisy["2.weight"][:4, 2:].any()  # nothing between slices
    assert not torch.equal(base_of([state], 4, 8)["2.weight"], noisy["2.weight"])


def test_a_width_that_is_no_multiple_of_the_parts_is_refused_with_what_would_do() -> None:
    with pytest.raises(WidthError, match=r"8 units, which are not 3 equal .* 2, 4, 8"):
        equal_slices(WIDTHS, 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('parts = { mode = "copies", fractions = "measured" }', "copies of one"),
        ('parts = { mode = "copies", aggregate = "gradients" }', "made of what nodes trained"),
        ('parts = { mode = "copies", moments = "travel" }', 'needs mode = "block"'),
        ('parts = { mode = "copies" }\nouter = { optimizer = "adam" }', "made anew of copies"),
        ('parts = { mode = "copies" }\nwire = { down = "int8" }', 'needs parts.planner = "full"'),
    ],
)
def test_what_does_not_go_with_copies_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_config(text)


def samples() -> TensorDataset:
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


TASK = Task(model, samples, samples, nn.functional.cross_entropy)
PLAN = Workplan((0.5, 0.5), ("", ""), 0.25)


def play(folder: Path, forget: bool) -> dict[str, Tensor]:
    """Two rounds; where ``forget`` the second's starts are lost, as by a restart."""
    config: RunConfig = parse_config("parts = { mode = 'copies', count = 2, rounds = 2 }")
    with closing(Store(folder)) as store:
        shop = Workshop(config, store, Base(TASK, torch.device("cpu")), samples(), samples())
        shop.first_base.write()
        write_clusters(store.folder / "clusters", [np.arange(0, 16, 2), np.arange(1, 16, 2)])
        for round in range(2):
            plan = shop.cutter.plan_round(PLAN, round)
            store.open_round(plan, at=0.0)
            assert plan.parts[0].part == plan.parts[1].part
            assert plan.parts[0].start == plan.parts[1].start is not None
            if forget:
                for path in set(shop.cutter.origin_paths(plan).values()):
                    path.unlink()
                shop.cutter.restore_starts(plan)
            for k, planned in enumerate(plan.parts):
                assert planned.start is not None
                state = load_tensors(shop.cutter.blob_paths(plan)[planned.start.digest])
                moved = {name: t + 0.01 * (k + 1) for name, t in state.items()}
                path = shop.update_path(round, k)
                digest = save_tensors(path, moved, durable=False)
                shop.inspector.check(path, plan, k)
                update = Update(
                    f"r{round}-p{k}", round, k, planned.start.digest, planned.num_samples,
                    0.5, 1.0, 10.0, 1000, type(planned.start)(digest, path.stat().st_size),
                )  # fmt: skip
                store.take_update(f"node-{k}", update, 1.0, shop.inspector.check(path, plan, k))
            result, facts = shop.merge_round(plan, (), Stages())
            store.commit_round(round, result, 2.0, facts)
            assert result.loss is not None
        return load_tensors(store.base_path(result.base))


def test_rounds_of_copies_come_out_the_same_when_starts_are_cut_again(tmp_path: Path) -> None:
    calm, torn = play(tmp_path / "calm", False), play(tmp_path / "torn", True)
    assert all(torch.equal(calm[name], torn[name]) for name in calm)
    assert not torch.equal(calm["2.weight"][:8, :4], calm["2.weight"][8:, 4:])  # at the hand-off


def test_a_slice_of_one_unit_gets_no_noise_where_its_spread_is_none() -> None:
    thin = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    widths = find_widths(thin)
    slices = equal_slices(widths, 4)
    state = dict(cut_module(thin, widths, slices[0]).state_dict())
    share = Contribution(slices[0], Tensors(state), 1.0)
    merger = CopyMerger(Merger(widths, [share], AVERAGE), widths, slices, 7)
    for name, old in thin.state_dict().items():
        assert merger.merge(name, old).isfinite().all(), name
