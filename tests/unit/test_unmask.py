"""Taking the masks off a sum: whoever survives, and whoever helps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import pytest
import torch
from tests.session import SESSION, Agreed

from partsum.coordinator.secure_rounds import seats
from partsum.coordinator.unmask import (
    MaskError,
    UnmaskedMean,
    masks_on_sum,
    shares_of,
    threshold,
)
from partsum.node.masking import mask_update
from partsum.shared.masks import Mask
from partsum.shared.messages import Blob, Update
from partsum.shared.secure import Masking
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors

WEIGHTS = [100, 50, 200, 1, 30]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> Agreed:
    return Agreed(tmp_path_factory.mktemp("members"), 5, 3)


@pytest.fixture(scope="module")
def files(agreed: Agreed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each member's update, plain and masked."""
    folder = tmp_path_factory.mktemp("updates")
    for k, member in enumerate(agreed.members):
        generator = torch.Generator().manual_seed(k)
        tensors: Tensors = {
            "w": torch.randn(7, 5, generator=generator),
            "half": torch.randn(9, generator=generator).bfloat16(),
            "steps": torch.tensor(12),
            "empty": torch.zeros(0, 3),
        }
        save_tensors(folder / f"plain{k}", tensors)
        masking = Masking(SESSION, shares_of(WEIGHTS, SESSION)[k].share)
        masks = member.masks(masking, "0" * 32)
        update = Update("r0", 0, k, "", 1, 1.0, 1.0, 1.0, 1, Blob("0" * 32, 1))
        mask_update(update, folder / f"plain{k}", masking, masks, folder / f"masked{k}")
    return folder


def mean_of(files: Path, survivors: Sequence[int], masks: Sequence[Mask]) -> Tensors:
    share = sum(shares_of(WEIGHTS, SESSION)[k].share for k in survivors)
    with ExitStack() as stack:
        like = stack.enter_context(TensorFile(files / "plain0"))
        masked = [stack.enter_context(TensorFile(files / f"masked{k}")) for k in survivors]
        mean = UnmaskedMean(masked, masks, share, like)
        return {name: mean.read(name) for name in sorted(like.tensors, reverse=True)}


ENOUGH = [set(who) for size in (3, 4, 5) for who in combinations(range(5), size)]


@pytest.mark.parametrize("survivors", ENOUGH, ids=lambda who: "".join(map(str, sorted(who))))
def test_whoever_survives_their_mean_comes_out_and_no_other(
    tmp_path: Path, agreed: Agreed, files: Path, survivors: set[int]
) -> None:
    # A member says for one set of survivors only: each case has members of its own.
    agreed = Agreed(tmp_path, 5, 3)
    chosen = sorted(survivors)
    opened = agreed.opened(chosen, [4, 1, 3])  # also of those who did not survive
    mean = mean_of(files, chosen, masks_on_sum(agreed.roster, chosen, opened))
    plain = [load_tensors(files / f"plain{k}") for k in chosen]
    total = sum(WEIGHTS[k] for k in chosen)
    for name in ("w", "half"):
        right = torch.zeros(plain[0][name].shape, dtype=torch.float64)
        for k, tensors in zip(chosen, plain, strict=True):
            right += WEIGHTS[k] / total * tensors[name].double()
        assert mean[name].dtype == plain[0][name].dtype
        tolerance = {"w": 1e-7, "half": 2.0**-7}[name]  # each dtype's own steps
        assert torch.allclose(mean[name].double(), right, rtol=tolerance, atol=1e-8)
    assert mean["steps"].equal(torch.tensor(12))
    assert mean["empty"].shape == (0, 3)


def test_the_mean_has_the_same_bytes_whatever_the_masks(
    tmp_path: Path, agreed: Agreed, files: Path
) -> None:
    everybody = list(range(5))
    bare, masked = tmp_path / "bare", agreed.opened(everybody, everybody[:3])
    bare.mkdir()
    for k in everybody:
        masking = shares_of(WEIGHTS, SESSION)[k]
        update = Update("r0", 0, k, "", 1, 1.0, 1.0, 1.0, 1, Blob("0" * 32, 1))
        mask_update(update, files / f"plain{k}", masking, [], bare / f"masked{k}")
        (bare / f"plain{k}").hardlink_to(files / f"plain{k}")
    masks = masks_on_sum(agreed.roster, everybody, masked)
    assert len(masks) == 5
    one, other = mean_of(files, everybody, masks), mean_of(bare, everybody, [])
    assert all(one[name].equal(other[name]) for name in one)


def test_masks_that_are_left_on_a_sum_are_noticed(agreed: Agreed, files: Path) -> None:
    opened = agreed.opened(range(5), [0, 1, 2])
    masks = masks_on_sum(agreed.roster, range(5), opened)
    for wrong in ([], masks[1:], [(bytes(32), 1), *masks[1:]]):
        with pytest.raises(MaskError, match="makes no sense"):
            mean_of(files, list(range(5)), wrong)


def test_shares_that_do_not_fit_are_noticed(tmp_path: Path) -> None:
    agreed = Agreed(tmp_path, 4, 3)
    opened = {k: dict(shares) for k, shares in agreed.opened([0, 1, 2], [0, 1, 2]).items()}
    with pytest.raises(MaskError, match="only 2 of 3 shares of a's secret"):
        masks_on_sum(agreed.roster, [0, 1, 2], {k: opened[k] for k in (0, 1)})
    opened[1][0] = opened[1][1]
    with pytest.raises(MaskError, match="the shares of a's secret do not fit"):
        masks_on_sum(agreed.roster, [0, 1, 2], opened)
    opened = {k: {**shares, 0: shares[1], 3: shares[0]} for k, shares in opened.items()}
    with pytest.raises(MaskError, match=r"d's (secret do not fit|key make up another key)"):
        masks_on_sum(agreed.roster, [0, 1, 2], {k: {**s, 0: s[1]} for k, s in opened.items()})


@pytest.mark.parametrize(
    ("members", "quorum", "least"), [(3, 2, 2), (4, 2, 3), (5, 1, 4), (9, 5, 6), (4, 4, 4)]
)
def test_two_thirds_and_the_quorum_must_survive(members: int, quorum: int, least: int) -> None:
    assert threshold(members, quorum) == least


def test_each_node_has_one_part_the_one_that_it_had() -> None:
    assert seats(["", "", ""], ["b", "a"]) == ["a", "b", ""]
    assert seats(["c", "a", "c"], ["a", "b", "c"]) == ["c", "a", "b"]
    assert seats(["gone", "b"], ["b", "c", "d"]) == ["c", "b"]
