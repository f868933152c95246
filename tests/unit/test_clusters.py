"""Clusters: disjoint, covering, sized as asked, and the same for the same seed."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from partsum.coordinator.clusters import assign_balanced, make_clusters
from partsum.coordinator.planner import equal_fractions
from partsum.shared.config import DataConfig
from partsum.shared.errors import DataError
from partsum.shared.task import Samples, Task

Kind = Literal["iid", "labels", "kmeans", "natural"]


def a_task(
    features: Callable[[Samples], np.ndarray] | None = None,
    keys: Callable[[Samples], np.ndarray] | None = None,
) -> Task:
    def nothing() -> Samples:
        raise FileNotFoundError

    return Task(
        model=lambda: nn.Linear(1, 1),
        train=nothing,
        validation=nothing,
        loss=nn.functional.cross_entropy,
        features=features,
        keys=keys,
    )


def some_samples(count: int, width: int = 5, labels: int = 3, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, width, generator=generator)
    return TensorDataset(inputs, torch.randint(0, labels, (count,), generator=generator))


def digits() -> TensorDataset:
    pixels, targets = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels).float(), torch.tensor(targets))


shares_of = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["iid", "labels", "kmeans", "natural"]),
    shares=shares_of,
    count=st.integers(6, 60),
    seed=st.integers(0, 2**31 - 1),
)
def test_clusters_are_sorted_disjoint_and_cover_all_samples(
    kind: Kind, shares: list[float], count: int, seed: int
) -> None:
    samples = some_samples(count, seed=seed % 7)
    task = a_task(keys=lambda found: np.arange(count) // 2 if count > 12 else np.arange(count))
    config = DataConfig(clusters=kind)
    clusters = make_clusters(config, task, samples, shares, seed)
    assert len(clusters) == len(shares)
    for cluster in clusters:
        assert cluster.dtype == np.int64
        assert len(cluster) > 0
        assert (np.diff(cluster) > 0).all()
    assert np.array_equal(np.sort(np.concatenate(clusters)), np.arange(count))
    again = make_clusters(config, task, samples, shares, seed)
    assert all(np.array_equal(one, other) for one, other in zip(clusters, again, strict=True))
    if kind in ("iid", "kmeans"):
        for cluster, share in zip(clusters, shares, strict=True):
            assert abs(len(cluster) - max(share * count, 1)) <= 1 or len(cluster) == 1


@pytest.mark.parametrize("kind", ["iid", "kmeans"])
def test_equal_shares_make_sizes_that_differ_by_at_most_one(kind: Kind) -> None:
    clusters = make_clusters(
        DataConfig(clusters=kind), a_task(), digits(), equal_fractions(7), seed=3
    )
    sizes = [len(cluster) for cluster in clusters]
    assert max(sizes) - min(sizes) <= 1


def test_another_seed_makes_other_iid_clusters() -> None:
    first, second = (
        make_clusters(DataConfig(), a_task(), some_samples(50), [0.5, 0.5], seed) for seed in (1, 2)
    )
    assert not np.array_equal(first[0], second[0])


def test_kmeans_puts_like_samples_together() -> None:
    samples = digits()
    clusters = make_clusters(
        DataConfig(clusters="kmeans"), a_task(), samples, equal_fractions(5), seed=0
    )
    pixels = samples.tensors[0].numpy()
    spread = np.mean([pixels[cluster].var(axis=0).sum() for cluster in clusters])
    assert spread < 0.9 * pixels.var(axis=0).sum()


def test_kmeans_reads_the_tasks_own_features() -> None:
    sides = np.tile([0.0, 10.0], 30)[:, None]
    clusters = make_clusters(
        DataConfig(clusters="kmeans", features="task"),
        a_task(features=lambda samples: sides),
        some_samples(60),
        [0.5, 0.5],
        seed=0,
    )
    assert {tuple(cluster % 2) for cluster in clusters} == {(0,) * 30, (1,) * 30}


@pytest.mark.parametrize("features", ["raw", "pca"])
def test_kmeans_bears_samples_that_are_all_the_same(features: Literal["raw", "pca"]) -> None:
    samples = TensorDataset(torch.ones(20, 3), torch.zeros(20, dtype=torch.int64))
    clusters = make_clusters(
        DataConfig(clusters="kmeans", features=features), a_task(), samples, [0.5, 0.5], seed=0
    )
    assert [len(cluster) for cluster in clusters] == [10, 10]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), capacities=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_a_balanced_assignment_fills_every_capacity_exactly(
    data: st.DataObject, capacities: list[int]
) -> None:
    total = sum(capacities)
    cost = st.lists(st.integers(0, 5), min_size=len(capacities), max_size=len(capacities))
    costs = data.draw(st.lists(cost, min_size=total, max_size=total))
    matrix = np.array(costs, dtype=np.float64).reshape(total, len(capacities))
    owner = assign_balanced(matrix, np.array(capacities))
    assert np.bincount(owner, minlength=len(capacities)).tolist() == capacities


def test_who_loses_most_by_the_second_choice_chooses_first() -> None:
    costs = np.array([[0.0, 1.0], [0.0, 9.0], [0.0, 5.0]])
    assert assign_balanced(costs, np.array([1, 2])).tolist() == [1, 0, 1]


def test_a_small_label_alpha_skews_the_labels() -> None:
    samples = some_samples(4000, labels=4)
    shares = equal_fractions(4)

    def skew(alpha: float) -> float:
        config = DataConfig(clusters="labels", label_alpha=alpha)
        clusters = make_clusters(config, a_task(), samples, shares, seed=5)
        labels = samples.tensors[1].numpy()
        return float(np.mean([np.bincount(labels[c]).max() / len(c) for c in clusters]))

    assert skew(0.05) > 0.5 > 0.35 > skew(100.0)


def test_natural_clusters_keep_whole_keys_and_follow_the_shares() -> None:
    keys = np.repeat(np.arange(40), 5)
    clusters = make_clusters(
        DataConfig(clusters="natural"),
        a_task(keys=lambda samples: keys),
        some_samples(200),
        [0.75, 0.25],
        seed=0,
    )
    assert not set(keys[clusters[0]]) & set(keys[clusters[1]])
    assert [len(cluster) for cluster in clusters] == [150, 50]


class Listed(Dataset[Any]):
    """A data set that is not a TensorDataset, as a user's may be."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < 30:
            raise IndexError(index)
        return torch.tensor([float(index), 1.0]), index % 3


@pytest.mark.parametrize("kind", ["labels", "kmeans"])
def test_any_map_style_data_set_can_be_clustered(kind: Kind) -> None:
    clusters = make_clusters(DataConfig(clusters=kind), a_task(), Listed(), [0.5, 0.5], seed=1)
    assert sum(len(cluster) for cluster in clusters) == 30


def tokens() -> TensorDataset:
    return TensorDataset(torch.zeros(9, 4, dtype=torch.int64), torch.zeros(9, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("config", "task", "samples", "said"),
    [
        (DataConfig(), a_task(), some_samples(2), "lower parts.count to 2"),
        (DataConfig(clusters="labels"), a_task(), tokens(), "one integer target a sample"),
        (DataConfig(clusters="kmeans"), a_task(), tokens(), "tokens"),
        (DataConfig(clusters="kmeans", features="task"), a_task(), tokens(), "no features"),
        (
            DataConfig(clusters="kmeans", features="task"),
            a_task(features=lambda samples: np.zeros((4, 2))),
            some_samples(9),
            r"shape \(4, 2\)",
        ),
        (
            DataConfig(clusters="kmeans", features="task"),
            a_task(features=lambda samples: np.full((9, 2), np.nan)),
            some_samples(9),
            "NaN",
        ),
        (DataConfig(clusters="natural"), a_task(), some_samples(9), "no keys function"),
        (
            DataConfig(clusters="natural"),
            a_task(keys=lambda samples: np.zeros(9, dtype=np.int64)),
            some_samples(9),
            "1 natural keys, too few for 3",
        ),
        (
            DataConfig(clusters="natural"),
            a_task(keys=lambda samples: np.zeros(4, dtype=np.int64)),
            some_samples(9),
            r"shape \(4,\)",
        ),
    ],
)
def test_data_that_cannot_be_clustered_as_asked_is_refused_in_words(
    config: DataConfig, task: Task, samples: TensorDataset, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        make_clusters(config, task, samples, equal_fractions(3), seed=0)
