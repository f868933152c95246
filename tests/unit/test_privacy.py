"""Differential privacy: what is added, to what, what it costs, and that it outlives a crash."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

import pytest
import torch
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from torch import Tensor, nn

from partsum.coordinator.merge import AVERAGE, Contribution, Merger, Tensors
from partsum.coordinator.noise import derived_key, gaussian
from partsum.coordinator.privacy import (
    Ledger,
    NoisyMerger,
    check_model,
    epsilon,
    noise_deviation,
    trained_names,
)
from partsum.coordinator.store import Store
from partsum.shared.config import PrivacyConfig, parse_config
from partsum.shared.errors import TaskError
from partsum.shared.part import WHOLE
from partsum.shared.width import Widths

KEY = bytes(range(32))


class Tied(nn.Module):
    """A readout that is the embedding, a frozen weight and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 30)
        self.head = nn.Linear(30, 40, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("table", torch.ones(3))


def noisy(key: bytes, deviation: float, updates: list[dict[str, Tensor]]) -> NoisyMerger:
    shares = [Contribution(WHOLE, Tensors(update), 1.0) for update in updates]
    return NoisyMerger(Merger(Widths(()), shares, AVERAGE), {"w": "w"}, key, deviation)


def test_the_noise_is_gaussian() -> None:
    drawn = gaussian(KEY, 400_001)  # odd, and more than a block
    assert drawn.shape == (400_001,)
    assert abs(float(drawn.mean())) < 4 / math.sqrt(len(drawn))
    assert abs(float(drawn.std()) - 1) < 0.01
    for beyond, share in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        assert float((drawn.abs() > beyond).double().mean()) == pytest.approx(share, rel=0.1)
    halves = drawn[: 1 << 17], drawn[1 << 17 : 1 << 18]  # a cosine's and its sine's
    assert abs(float((halves[0] * halves[1]).mean())) < 0.02
    assert gaussian(KEY, 0).shape == (0,)


def test_the_same_key_gives_the_same_noise_and_any_other_another() -> None:
    assert torch.equal(gaussian(KEY, 1001), gaussian(KEY, 1001))
    other = derived_key(KEY, "tensor", "w")
    assert other != derived_key(KEY, "tensorw") != derived_key(KEY, "tensor", "v")
    assert abs(float((gaussian(KEY, 10_000) * gaussian(other, 10_000)).mean())) < 0.05


def test_noise_of_the_promised_size_comes_onto_the_mean() -> None:
    privacy = PrivacyConfig(noise_multiplier=2.0, clip_norm=3.0)
    deviation = noise_deviation(privacy, 4)
    assert deviation == 1.5
    old = torch.zeros(300, 300)
    updates = [{"w": torch.full_like(old, float(k))} for k in range(4)]
    added = noisy(KEY, deviation, updates).merge("w", old) - 1.5
    assert float(added.std()) == pytest.approx(1.5, rel=0.02)
    assert abs(float(added.mean())) < 0.03


def test_what_training_does_not_change_stays_as_it_is_in_the_base() -> None:
    old = torch.ones(3)
    merger = noisy(KEY, 1.0, [{"w": old, "table": old * 9, "n": torch.tensor(9)}])
    assert merger.merge("table", old) is old
    assert merger.merge("n", torch.tensor(2)) == 2


def test_tied_parameters_get_the_same_noise() -> None:
    names = trained_names(Tied())
    assert names == {"embedding.weight": "embedding.weight", "head.weight": "embedding.weight"}
    weight = torch.zeros(40, 30)
    update = Contribution(WHOLE, Tensors(dict.fromkeys(names, weight)), 1.0)
    merger = NoisyMerger(Merger(Widths(()), [update], AVERAGE), names, KEY, 1.0)
    first, second = (merger.merge(name, weight) for name in names)
    assert first.any()
    assert torch.equal(first, second)


def test_a_model_with_batch_norm_is_refused() -> None:
    check_model(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)))
    with pytest.raises(TaskError, match="without batch norm"):
        check_model(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_epsilon_is_what_the_accountants_of_the_library_say() -> None:
    found = epsilon(PrivacyConfig(noise_multiplier=1.0, delta=1e-5), 10)
    exact, bound = PLDAccountant(value_discretization_interval=0.001), RdpAccountant()
    for accountant in (exact, bound):
        accountant.compose(GaussianDpEvent(1.0), 10)
    assert found == pytest.approx(exact.get_epsilon(1e-5), rel=1e-3)
    assert found <= bound.get_epsilon(1e-5)


def test_nothing_is_spent_before_the_first_round() -> None:
    assert epsilon(PrivacyConfig(noise_multiplier=1.0), 0) == 0.0


def test_a_release_is_counted_once_and_its_noise_comes_again_after_a_restart(
    tmp_path: Path,
) -> None:
    config = parse_config(
        "parts = { planner = 'full' }\nhandoff = { enabled = false }\n"
        "privacy = { noise_multiplier = 1.0 }"
    )
    with closing(Store(tmp_path)) as store:
        assert Ledger(store).spent(config) is None
        Ledger(store).open()
        first = Ledger(store).release(0, ["a", "b"])
    with closing(Store(tmp_path)) as store:
        ledger = Ledger(store)
        ledger.open()
        assert ledger.release(0, ["a", "b"]) == first
        assert ledger.spent(config) == epsilon(config.privacy, 1)
        # Done over with other updates: the same noise on both would cancel.
        assert ledger.release(0, ["a", "c"]) != first
        assert ledger.spent(config) == epsilon(config.privacy, 2)
        assert ledger.release(1, ["a", "b"]) != first
    with closing(Store(tmp_path / "other")) as store:
        ledger = Ledger(store)
        ledger.open()
        assert ledger.release(0, ["a", "b"]) != first  # the key is no seed of the config
