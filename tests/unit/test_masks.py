"""Masks: fixed point, key streams that cancel, and files in which nothing can be read."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from partsum.node.masking import mask_update
from partsum.shared.errors import PartsumError, WireError
from partsum.shared.masks import (
    LARGEST,
    Mask,
    apply_masks,
    check_key,
    from_words,
    mask_words,
    public_key,
    shared_key,
    sign,
    to_words,
)
from partsum.shared.messages import Blob, Update
from partsum.shared.secure import Masking
from partsum.shared.tensors import load_tensors, save_tensors

# Not st.randoms: it draws zeros too, and pairs with one key between them have no mask.
RNGS = st.integers(0, 2**32).map(random.Random)
VALUES = arrays(np.float64, 7, elements=st.floats(-LARGEST, LARGEST))


@given(st.lists(VALUES, min_size=1, max_size=6), st.data())
def test_a_sum_of_words_is_the_weighted_mean_to_the_last_step(
    values: list[np.ndarray], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=len(values), max_size=len(values)))
    shares = [weight / sum(weights) for weight in weights]
    words = np.zeros(7, dtype=np.uint64)
    for value, share in zip(values, shares, strict=True):
        words += to_words(value, share)
    mean = sum(share * value for share, value in zip(shares, values, strict=True))
    step = len(values) * 2.0**-41 + LARGEST * 2.0**-50  # rounding of each, and of float64 itself
    assert np.abs(from_words(words, sum(shares)) - mean).max() <= step


@given(st.integers(2, 6), RNGS, st.integers(0, 3))
def test_masks_of_all_pairs_cancel_in_the_sum(
    members: int, rng: random.Random, tensor: int
) -> None:
    private = [rng.randbytes(32) for _ in range(members)]
    plain = [np.frombuffer(rng.randbytes(80), dtype="<u8") for _ in range(members)]
    total = np.zeros(10, dtype=np.uint64)
    for me in range(members):
        masks: list[Mask] = [
            (shared_key(private[me], public_key(private[other]), "test"), sign(me, other))
            for other in range(members)
            if other != me
        ]
        masked = apply_masks(plain[me], masks, tensor)
        assert not (masked == plain[me]).any()
        total += masked
    assert (total == sum(plain[1:], plain[0])).all()


def test_a_long_tensor_has_the_mask_that_its_pieces_have() -> None:
    key, words = bytes([7] * 32), np.zeros((1 << 18) + 3, dtype=np.uint64)
    whole = mask_words(key, 2, len(words))
    assert (apply_masks(words, [(key, 1)], 2) == whole).all()
    assert (mask_words(key, 2, 5, 1 << 10) == whole[1 << 10 : (1 << 10) + 5]).all()
    assert not apply_masks(whole, [(key, -1)], 2).any()


def test_each_tensor_each_key_and_each_purpose_has_a_mask_of_its_own() -> None:
    key, other = bytes(32), bytes([1] * 32)
    streams = [mask_words(key, 0, 64), mask_words(key, 1, 64), mask_words(other, 0, 64)]
    assert len({word for stream in streams for word in stream.tolist()}) == 3 * 64
    assert (mask_words(key, 0, 8) == streams[0][:8]).all()
    keys = {shared_key(key, public_key(other), purpose) for purpose in ("a", "b")}
    assert keys == {shared_key(other, public_key(key), purpose) for purpose in ("a", "b")}
    assert len(keys) == 2
    check_key(public_key(key))
    with pytest.raises(WireError, match="is not one"):
        check_key(bytes(32))  # of low order: everybody knows the secret that comes of it


@pytest.mark.parametrize("value", [2 * LARGEST, -2 * LARGEST, float("nan"), float("inf")])
def test_a_value_that_does_not_fit_is_refused_with_its_tensor(tmp_path: Path, value: float) -> None:
    path = tmp_path / "update"
    save_tensors(path, {"good": torch.ones(3), "layer.bad": torch.tensor([1.0, value])})
    with pytest.raises(PartsumError, match=r"'layer\.bad' cannot be masked: it holds a value of"):
        mask_update(update(), path, Masking("s", 0.5), [], tmp_path / "masked")
    assert [file.name for file in tmp_path.iterdir()] == ["update"]


def test_nothing_can_be_read_in_a_masked_file(tmp_path: Path) -> None:
    path, out = tmp_path / "update", tmp_path / "masked"
    plain = {"w": torch.randn(100, 300), "b": torch.zeros(500), "n": torch.tensor(7)}
    save_tensors(path, plain)
    masked = mask_update(update(), path, Masking("s", 0.5), [(bytes(32), 1)], out)
    found = load_tensors(out)
    assert masked.session == "s"
    assert masked.blob.size_bytes == out.stat().st_size
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        name: tuple(t.shape) for name, t in plain.items()
    }
    for name, tensor in found.items():
        words = to_words(plain[name].double().reshape(-1).numpy(), 0.5)
        assert not (tensor.reshape(-1).numpy().view(np.uint64) == words).any()
    # Uniform bytes: chi-squared of 255 degrees of freedom is 255 with a deviation of 22.6.
    raw = torch.cat([t.reshape(-1) for t in found.values()]).view(torch.uint8).numpy()
    counts = np.bincount(raw, minlength=256)
    assert 255 - 6 * 22.6 < ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 6 * 22.6


def update() -> Update:
    return Update("r0-p0", 0, 0, "", 10, 1.0, 1.0, 1.0, 1, Blob("0" * 32, 1))
