"""Clusters: which samples each part sees in the parts phase. Pure: a seed in, indices out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from partsum.coordinator.planner.fractions import split_units
from partsum.shared.config import DataConfig
from partsum.shared.errors import DataError
from partsum.shared.task import Samples, Task, gather, num_samples

Indices = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

_PCA_COMPONENTS = 32
_BALANCED_PASSES = 10  # on digits within 0.2 % of where 20 end (measured)
_GATHER_SAMPLES = 1024


def make_clusters(
    config: DataConfig, task: Task, samples: Samples, shares: Sequence[float], seed: int
) -> list[Indices]:
    """One cluster for each share: sorted int64 sample indices, disjoint, covering all samples.

    Sizes are in proportion to ``shares`` (which add up to 1), at least one sample each: exactly,
    by largest remainder, for iid and kmeans; as far as whole keys allow for natural; on average
    for labels. Same arguments, same arrays.

    Raises:
        DataError: fewer samples or keys than clusters, or data without what the kind needs.
    """
    total = num_samples(samples)
    if total < len(shares):
        raise DataError(
            f"{total} training samples cannot fill {len(shares)} clusters; lower parts.count to "
            f"{total} or bring more data"
        )
    rng = np.random.default_rng(seed)
    if config.clusters == "iid":
        owner = rng.permutation(np.repeat(np.arange(len(shares)), split_units(total, shares)))
    elif config.clusters == "labels":
        owner = _by_label(_labels(samples), shares, config.label_alpha, rng)
    elif config.clusters == "kmeans":
        owner = _by_likeness(_features(config, task, samples, seed), shares, seed)
    else:
        owner = _by_key(_keys(task, samples), shares)
    return [np.flatnonzero(owner == k).astype(np.int64) for k in range(len(shares))]


def _by_label(
    labels: Indices, shares: Sequence[float], alpha: float, rng: np.random.Generator
) -> Indices:
    """Each label's samples are split by a draw from a Dirichlet distribution (1909.06335)."""
    concentration = alpha * len(shares) * np.asarray(shares)  # alpha each, where shares are equal
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum(rng.dirichlet(concentration))[:-1] * len(members)
        for k, taken in enumerate(np.split(members, np.round(cuts).astype(np.int64))):
            owner[taken] = k
    return _leave_none_empty(owner, len(shares))


def _leave_none_empty(owner: Indices, count: int) -> Indices:
    """Give each empty cluster the first sample of the biggest one."""
    for k in range(count):
        sizes = np.bincount(owner, minlength=count)
        if sizes[k] == 0:
            owner[np.flatnonzero(owner == sizes.argmax())[0]] = k
    return owner


def _by_likeness(features: Floats, shares: Sequence[float], seed: int) -> Indices:
    """Balanced k-means: mini-batch k-means for the centres, then Lloyd passes under capacities."""
    from sklearn.cluster import MiniBatchKMeans  # seconds and 100 MB, for k-means only

    count = len(shares)
    start = MiniBatchKMeans(count, batch_size=4096, n_init=3, random_state=seed).fit(features)
    centres = np.asarray(start.cluster_centers_)
    # The biggest natural cluster goes to the biggest share, so that little has to move.
    natural = np.argsort(-np.bincount(start.labels_, minlength=count), kind="stable")
    placed = np.empty_like(centres)
    placed[np.argsort(-np.asarray(shares), kind="stable")] = centres[natural]
    capacities = np.asarray(split_units(len(features), shares))
    for _ in range(_BALANCED_PASSES):
        owner = assign_balanced(_distances(features, placed), capacities)
        placed = np.stack([features[owner == k].mean(axis=0) for k in range(count)])
    return assign_balanced(_distances(features, placed), capacities)


def assign_balanced(costs: Floats, capacities: Indices) -> Indices:
    """An owner in [0, K) for each row of ``costs`` (n, K); owner k gets exactly capacities[k].

    Greedy by regret: who would lose most by its second choice chooses first (the idea of Martello
    and Toth for the generalized assignment problem, 1981; not optimal, and at most K sorts where
    the optimal one takes minutes). When an owner is full, the rest choose among those left.
    """
    owner = np.full(len(costs), -1, dtype=np.int64)
    room = capacities.copy()
    while (waiting := np.flatnonzero(owner < 0)).size:
        costs_left = np.where(room > 0, costs[waiting], np.inf)
        choice = costs_left.argmin(axis=1)
        order = np.argsort(-_regret(costs_left), kind="stable")
        # All choose up to the one who fills the first owner.
        filled_at = [
            chosen[space - 1]
            for k, space in enumerate(room)
            if space and len(chosen := np.flatnonzero(choice[order] == k)) >= space
        ]
        served = order[: min(filled_at, default=len(order)) + 1]
        owner[waiting[served]] = choice[served]
        room -= np.bincount(choice[served], minlength=len(room))
    return owner


def _regret(costs: Floats) -> Floats:
    """What each row loses by its second choice; 0 where there is only one choice left."""
    if costs.shape[1] == 1:
        return np.zeros(len(costs))
    best = np.partition(costs, 1, axis=1)[:, :2]
    second = np.where(np.isfinite(best[:, 1]), best[:, 1], best[:, 0])
    return np.asarray(second - best[:, 0])


def _distances(features: Floats, centres: Floats) -> Floats:
    """Squared distances (n, K), less each row's own square, which no choice depends on."""
    return np.asarray((centres**2).sum(axis=1) - 2 * features @ centres.T)


def _by_key(keys: Indices, shares: Sequence[float]) -> Indices:
    """Whole keys, biggest first, each to the cluster that is emptiest for its share."""
    _, which, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if len(sizes) < len(shares):
        raise DataError(
            f"the task's samples have {len(sizes)} natural keys, too few for {len(shares)} "
            f'clusters; lower parts.count to {len(sizes)} or choose data.clusters = "iid"'
        )
    held = [0] * len(shares)
    home = np.empty(len(sizes), dtype=np.int64)
    for key in np.argsort(-sizes, kind="stable"):
        home[key] = min(range(len(shares)), key=lambda k: (held[k] / shares[k], -shares[k], k))
        held[home[key]] += int(sizes[key])
    return np.asarray(home[which])


def _features(config: DataConfig, task: Task, samples: Samples, seed: int) -> Floats:
    """What k-means looks at: a finite float32 array (n, f)."""
    if config.features == "task":
        if task.features is None:
            raise DataError(
                'data.features is "task", but the task has no features function; give it one '
                '(docs/tutorial.md) or choose data.features = "pca"'
            )
        found = np.asarray(task.features(samples), dtype=np.float32)
        if found.ndim != 2 or len(found) != num_samples(samples):
            raise DataError(
                f"the task's features have shape {found.shape}; {num_samples(samples)} samples "
                f"need ({num_samples(samples)}, f)"
            )
    else:
        found = _inputs(samples)
    if not np.isfinite(found).all():
        raise DataError("the features that k-means clusters by hold NaN or infinity; clean them")
    return _principal(found, seed) if config.features == "pca" else found


def _principal(features: Floats, seed: int) -> Floats:
    """The first 32 principal components, or as many as there are."""
    from sklearn.decomposition import PCA

    components = min(_PCA_COMPONENTS, *features.shape)
    with np.errstate(invalid="ignore"):  # constant features explain 0 of 0 variance
        return np.asarray(PCA(components, random_state=seed).fit_transform(features))


def _inputs(samples: Samples) -> Floats:
    inputs = _column(samples, 0)
    if inputs.dtype in (torch.int64, torch.int32):
        raise DataError(
            f"the task's inputs are {inputs.dtype}, so tokens, whose numbers do not say how alike "
            'they are; give the task a features function and say data.features = "task", or '
            'choose data.clusters = "natural" or "iid"'
        )
    return inputs.reshape(len(inputs), -1).float().numpy()


def _labels(samples: Samples) -> Indices:
    targets = _column(samples, 1)
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex():
        raise DataError(
            f'data.clusters = "labels" needs one integer target a sample; these targets are '
            f"{targets.dtype} of shape {tuple(targets.shape)}. Choose iid, kmeans or natural"
        )
    return targets.long().numpy()


def _keys(task: Task, samples: Samples) -> Indices:
    if task.keys is None:
        raise DataError(
            'data.clusters is "natural", but the task has no keys function; give it one '
            '(docs/tutorial.md) or choose data.clusters = "iid"'
        )
    keys = np.asarray(task.keys(samples))
    if keys.shape != (num_samples(samples),):
        raise DataError(
            f"the task's keys have shape {keys.shape}; {num_samples(samples)} samples need one each"
        )
    return keys


def _column(samples: Samples, which: int) -> torch.Tensor:
    """All inputs (0) or all targets (1) of a data set as one tensor."""
    if isinstance(samples, TensorDataset):
        return samples.tensors[which].detach().cpu()
    pieces = torch.split(torch.arange(num_samples(samples)), _GATHER_SAMPLES)
    return torch.cat([gather(samples, piece)[which] for piece in pieces])
