"""The outer step: by numbers worked out on paper, and what must not change beside it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_aggregate import merged
from tests.unit.test_workshop import (
    EQUAL,
    FULL,
    UNEVEN,
    close_round,
    config_of,
    deliver,
    opened,
    run,
    workshop_of,
)
from torch import Tensor

from partsum.coordinator import outer
from partsum.coordinator.clock import Stages
from partsum.coordinator.cutter import base_name
from partsum.coordinator.merge import AVERAGE, Contribution, Merger, Tensors
from partsum.coordinator.outer import OuterStep
from partsum.coordinator.store import Store
from partsum.coordinator.strategies.optimizers import Optimizer, make_optimizer
from partsum.shared.config import OuterConfig, RunConfig, parse_config
from partsum.shared.part import WHOLE, Part
from partsum.shared.tensors import load_tensors, save_tensors
from partsum.shared.width import Slot, WidthGroup, Widths

WIDTHS = Widths((WidthGroup("g", 3, "hidden", (Slot("w", 0),)),), scales=())
TRAINED = {"w", "b"}
OPTIMIZERS = ("momentum", "nesterov", "adam", "yogi")


def optimizer(name: str, **values: Any) -> Optimizer:
    return make_optimizer(OuterConfig.model_validate({"optimizer": name, **values}))


def step(folder: Path, round: int, made: Optimizer, shares: list[Contribution]) -> None:
    old, new = (folder / base_name(version) for version in (round, round + 1))
    merger = Merger(WIDTHS, shares, AVERAGE)
    OuterStep(made, TRAINED, folder).apply(old, merger, new, {}, round)


def whole(tensors: Mapping[str, Tensor]) -> list[Contribution]:
    return [Contribution(WHOLE, Tensors(tensors), 1.0)]


def state(*values: float) -> dict[str, Tensor]:
    return {
        "w": torch.tensor(values).view(3, 1),
        "b": torch.tensor(values[0]),
        "steps": torch.tensor(1),
        "statistics": torch.tensor(values),
    }


def walk(folder: Path, made: Optimizer, *merged: tuple[float, ...]) -> list[list[float]]:
    """From a base of zeros: the base's three weights after each of these merges."""
    save_tensors(folder / base_name(0), state(0.0, 0.0, 0.0), durable=False)
    found = []
    for round, values in enumerate(merged):
        step(folder, round, made, whole(state(*values)))
        base = load_tensors(folder / base_name(round + 1))
        assert base["b"] == base["w"][0, 0]
        found.append(base["w"].view(-1).tolist())
    return found


# -- two steps each, by numbers --------------------------------------------------------------------


def test_momentum_keeps_its_speed(tmp_path: Path) -> None:
    first, second = walk(
        tmp_path,
        optimizer("momentum", momentum=0.5),
        (1.0, -2.0, 0.0),
        (1.5, -2.0, 4.0),
    )
    # Speeds (1, -2, 0), then half of them and the changes (0.5, 0, 4).
    assert first == [1.0, -2.0, 0.0]
    assert second == [1.0 + 1.0, -2.0 - 1.0, 0.0 + 4.0]


def test_nesterov_looks_a_step_ahead(tmp_path: Path) -> None:
    first, second = walk(
        tmp_path,
        optimizer("nesterov", learning_rate=0.5, momentum=0.5),
        (1.0, -2.0, 0.0),
        (1.0, -1.0, 4.0),
    )
    # Change (1, -2, 0), speed the same; goes 0.5 x (change + 0.5 speed) = 0.75 of the change.
    assert first == [0.75, -1.5, 0.0]
    # Change (0.25, 0.5, 4); speed (0.75, -0.5, 4); goes 0.5 x (0.625, 0.25, 6).
    assert second == [0.75 + 0.3125, -1.5 + 0.125, 3.0]


def test_nesterov_is_torchs_sgd_on_the_change_turned_round(tmp_path: Path) -> None:
    """DiLoCo: the outer gradient is what the merge would take away from the base."""
    merges = [(1.0, -2.0, 0.5), (0.3, 0.7, -1.0), (2.0, 0.1, 0.0)]
    found = walk(tmp_path, optimizer("nesterov"), *merges)
    weights = torch.zeros(3, requires_grad=True)
    sgd = torch.optim.SGD([weights], lr=0.7, momentum=0.9, nesterov=True)
    for target, expected in zip(merges, found, strict=True):
        weights.grad = weights.detach() - torch.tensor(target)
        sgd.step()
        torch.testing.assert_close(torch.tensor(expected), weights.detach())


def test_adam_divides_by_the_root_of_what_it_has_seen(tmp_path: Path) -> None:
    made = optimizer("adam", learning_rate=0.1, betas=[0.5, 0.75], epsilon=2.0)
    first, second = walk(tmp_path, made, (4.0, -4.0, 0.0), (4.4, 3.8, 0.0))
    # m = 0.5 x 4 = 2; v = 0.75 x 2^2 + 0.25 x 4^2 = 7; goes 0.1 x 2 / (sqrt(7) + 2).
    gone = 0.1 * 2 / (7**0.5 + 2)
    assert first == pytest.approx([gone, -gone, 0.0])
    # The first change is 4.4 - gone, the second 3.8 + gone.
    expected = []
    for at, to, before in ((gone, 4.4, 2.0), (-gone, 3.8, -2.0)):
        mean = 0.5 * before + 0.5 * (to - at)
        spread = 0.75 * 7 + 0.25 * (to - at) ** 2
        expected.append(at + 0.1 * mean / (spread**0.5 + 2))
    assert second == pytest.approx([*expected, 0.0])


def test_yogi_forgets_a_large_change_by_small_steps(tmp_path: Path) -> None:
    made = optimizer("yogi", learning_rate=0.1, betas=[0.5, 0.75], epsilon=2.0)
    first, second = walk(tmp_path, made, (4.0, 1.0, 0.0), (4.0, 1.0, 0.0))
    # v begins at 4. Change 4: v = 4 + 0.25 x 16 = 8. Change 1 is the less: v = 4 - 0.25 = 3.75.
    gone = (0.1 * 2 / (8**0.5 + 2), 0.1 * 0.5 / (3.75**0.5 + 2))
    assert first == pytest.approx([*gone, 0.0])
    # Changes 4 - gone and 1 - gone: above v for the first, below it for the second.
    large, small = 4 - gone[0], 1 - gone[1]
    means = (1.0 + 0.5 * large, 0.25 + 0.5 * small)
    spreads = (8 + 0.25 * large**2, 3.75 - 0.25 * small**2)
    expected = [
        at + 0.1 * mean / (spread**0.5 + 2)
        for at, mean, spread in zip(gone, means, spreads, strict=True)
    ]
    assert second == pytest.approx([*expected, 0.0])


@pytest.mark.parametrize(
    ("name", "rate", "first"),
    [
        ("momentum", 1.0, 1.0),
        ("nesterov", 0.7, 0.7 * 1.9),
        ("adam", 0.01, 0.01 * 0.1 / ((0.99e-6 + 0.01) ** 0.5 + 1e-3)),
        ("yogi", 0.01, 0.01 * 0.1 / ((1e-6 + 0.01) ** 0.5 + 1e-3)),
    ],
)
def test_what_the_config_leaves_open_is_the_papers(name: str, rate: float, first: float) -> None:
    for made in (optimizer(name), optimizer(name, learning_rate=rate)):
        moments = torch.tensor(made.fresh, dtype=torch.float64).view(-1, 1)
        gone = made.step(torch.ones(1, dtype=torch.float64), moments)
        assert gone.item() == pytest.approx(first)


# -- what must hold of all -------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9))
def test_rate_1_without_momentum_goes_to_the_average(pairs: list[tuple[float, float]]) -> None:
    """To double precision of where it came from, so mostly to the bit."""
    old, merged = torch.tensor(pairs).T
    for name in ("momentum", "nesterov"):
        made = optimizer(name, learning_rate=1.0, momentum=0.0)
        gone = made.step(merged.double() - old, torch.zeros(1, len(pairs), dtype=torch.float64))
        found = (old + gone).float()
        assert ((found.double() - merged).abs() <= 2.0**-52 * old.double().abs()).all()


@given(st.sampled_from(OPTIMIZERS), st.lists(st.lists(numbers, min_size=3, max_size=3), max_size=6))
def test_turned_round_changes_go_the_same_way_back(name: str, changes: list[list[float]]) -> None:
    made = optimizer(name)
    there = torch.tensor(made.fresh, dtype=torch.float64).view(-1, 1).repeat(1, 3)
    back = there.clone()
    for change in changes:
        values = torch.tensor(change, dtype=torch.float64)
        gone = made.step(values, there)
        assert torch.equal(made.step(-values, back), -gone)
        assert gone.isfinite().all()
    if name in {"adam", "yogi"}:
        assert (there[1] > 0).all()


@given(numbers, st.sampled_from(["adam", "yogi"]))
def test_a_first_adaptive_step_is_no_longer_than_the_rate(change: float, name: str) -> None:
    """(1 - b1) / sqrt(1 - b2) is 1 with the papers' betas."""
    made = optimizer(name, learning_rate=0.5)
    moments = torch.tensor(made.fresh, dtype=torch.float64).view(-1, 1)
    gone = made.step(torch.tensor([change], dtype=torch.float64), moments)
    assert abs(gone.item()) <= 0.5
    assert gone.item() * change >= 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_how_many_elements_are_taken_at_a_time_changes_no_bit(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = [(1.0, -2.0, 0.5), (0.3, 0.7, -1.0)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "single").mkdir()
    expected = walk(tmp_path / "whole", optimizer(name), *merges)
    monkeypatch.setattr(outer, "_BLOCK", 1)
    assert walk(tmp_path / "single", optimizer(name), *merges) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_elements_that_no_part_holds_keep_their_value_and_their_moments(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    start = {"w": torch.tensor([[1.0], [2.0], [3.0]], dtype=dtype), "b": torch.tensor(5.0)}
    save_tensors(tmp_path / base_name(0), start, durable=False)
    made = optimizer("adam")
    step(tmp_path, 0, made, whole({"w": start["w"] + 1, "b": start["b"] + 1}))
    base, moments = (
        load_tensors(tmp_path / name) for name in (base_name(1), "moments-00001.safetensors")
    )
    lower = {"w": torch.tensor([[9.0], [9.0]], dtype=dtype), "b": torch.tensor(9.0)}
    step(tmp_path, 1, made, [Contribution(Part({"g": (0, 2)}), Tensors(lower), 4.0)])
    after, kept = (
        load_tensors(tmp_path / name) for name in (base_name(2), "moments-00002.safetensors")
    )
    assert torch.equal(after["w"][1], base["w"][1])
    assert torch.equal(kept["w"][:, 1], moments["w"][:, 1])
    assert (kept["w"][0, [0, 2]] != moments["w"][0, [0, 2]]).all()
    assert after["b"] > base["b"]
    assert after["w"].dtype == kept["w"].dtype == dtype


def test_what_is_not_trained_is_merged_and_nothing_more(tmp_path: Path) -> None:
    save_tensors(tmp_path / base_name(0), state(0.0, 0.0, 0.0), durable=False)
    sent = [{**state(v, v, v), "steps": torch.tensor(int(v))} for v in (2.0, 4.0)]
    shares = [Contribution(WHOLE, Tensors(tensors), 1.0) for tensors in sent]
    step(tmp_path, 0, optimizer("nesterov"), shares)
    found = load_tensors(tmp_path / base_name(1))
    assert found["statistics"].tolist() == [3.0, 3.0, 3.0]
    assert found["steps"] == 4
    assert found["w"].view(-1).tolist() == pytest.approx([3 * 0.7 * 1.9] * 3)
    assert set(load_tensors(tmp_path / "moments-00001.safetensors")) == TRAINED


# -- whole rounds ----------------------------------------------------------------------------------


def stepped(name: str, **parts: Any) -> RunConfig:
    config = config_of(**parts)
    return config.model_copy(update={"outer": OuterConfig(optimizer=name)})  # type: ignore[arg-type]


def test_the_average_keeps_no_moments_and_its_bytes(tmp_path: Path) -> None:
    """As the plain merge writes them."""
    digests = run(tmp_path / "average", FULL)
    assert not list((tmp_path / "average").glob("bases/moments-*"))
    exact = OuterConfig(optimizer="momentum", learning_rate=1.0, momentum=0.0)
    same = run(tmp_path / "exact", FULL.model_copy(update={"outer": exact}))
    assert same == digests
    assert len(list((tmp_path / "exact").glob("bases/moments-*"))) == 2


@pytest.mark.parametrize(
    "given",
    [
        "merge = { rule = 'norm_clip' }",
        "merge = { rule = 'median' }",
        "merge = { rule = 'krum' }",
        "privacy = { noise_multiplier = 1.0 }\nhandoff = { enabled = false }",
    ],
)
def test_the_step_follows_whatever_the_rule_makes_of_the_updates(
    tmp_path: Path, given: str
) -> None:
    """Rate 1 without momentum: the rule's own result."""
    exact = "outer = { optimizer = 'momentum', learning_rate = 1.0, momentum = 0.0 }"
    found = []
    for folder, text in ((tmp_path / "plain", given), (tmp_path / "exact", f"{given}\n{exact}")):
        config = parse_config(f"parts = {{ count = 5, planner = 'full' }}\n{text}")
        with closing(Store(folder)) as store:
            store.note(privacy={"key": "0" * 64, "releases": []})
        found.append(merged(folder, config, liar=1)[1].read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("momentum", {"mode": "residual"}),
        ("nesterov", {"planner": "full"}),
        ("adam", {"mode": "residual"}),
        ("yogi", {"planner": "full"}),
    ],
)
def test_a_merge_that_died_before_its_commit_is_done_again_to_the_byte(
    tmp_path: Path, name: str, parts: dict[str, str]
) -> None:
    config = stepped(name, **parts)
    expected = run(tmp_path / "undisturbed", config, UNEVEN)
    digests = []
    for round in range(2):
        with closing(Store(tmp_path / "killed")) as store:  # merged, and dead before the commit
            shop = workshop_of(config, store)
            plan = opened(shop, UNEVEN, round)
            for k in range(2):
                deliver(shop, plan, k)
            shop.merge_round(plan, (), Stages())
        with closing(Store(tmp_path / "killed")) as store:
            shop = workshop_of(config, store)
            digests.append(close_round(shop, opened(shop, UNEVEN, round)).digest)
            path = tmp_path / "killed" / "bases" / f"moments-{round + 1:05d}.safetensors"
            assert path in shop.files_of(round)  # recovery looks at it
    assert digests == expected


def test_in_mode_residual_a_lost_part_leaves_its_units_and_their_moments_alone(
    tmp_path: Path,
) -> None:
    config = stepped("nesterov", mode="residual")
    with closing(Store(tmp_path)) as store:
        shop = workshop_of(config, store)
        plan = opened(shop, EQUAL, 0)
        deliver(shop, plan, 1)
        close_round(shop, plan, missing=(0,))
        before, after = (load_tensors(store.base_path(base_name(v))) for v in (0, 1))
        lost, live = (list(plan.parts[k].part.units["0"]) for k in (0, 1))
        moments = load_tensors(tmp_path / "bases" / "moments-00001.safetensors")["0.weight"]
        assert torch.equal(before["0.weight"][lost], after["0.weight"][lost])
        assert not moments[:, lost].any()
        assert (before["0.weight"][live] != after["0.weight"][live]).all()
        assert before["3.scale"] == after["3.scale"] == 0.5
