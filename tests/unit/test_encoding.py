"""Tensors in fewer bytes: what is lost is bounded, and bad files are refused in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from partsum.shared.encoded import Encoded, check_forms, file_shapes, restore, write_encoded
from partsum.shared.encoding import BLOCK, decode, encode, encoded_shapes
from partsum.shared.errors import PartsumError, WireError
from partsum.shared.messages import Encoding
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors

SHORT: tuple[Encoding, Encoding] = ("bfloat16", "int8")
NUMBERS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
    elements=st.floats(-(2.0**126), 2.0**126, width=32),
)


def losses(values: Tensor) -> Tensor:
    """The most that int8 may lose of each value: half a step of its block."""
    flat = values.reshape(-1)
    blocks = [flat[k : k + BLOCK] for k in range(0, len(flat), BLOCK)]
    bounds = [block.abs().max().double().expand(len(block)) / 253.9 for block in blocks]
    return torch.cat(bounds).reshape(values.shape) if bounds else values.double()


@given(NUMBERS)
def test_what_int8_loses_is_at_most_half_a_step_of_the_block(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    found = decode(encode(values, "int8"), tuple(values.shape))
    assert found.shape == values.shape
    lost = (found.double() - values.double()).abs()
    assert bool((lost <= losses(values) + 2.0**-119).all())


@given(NUMBERS)
def test_what_bfloat16_loses_is_at_most_a_256th(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    found = decode(encode(values, "bfloat16"), tuple(values.shape))
    lost = (found.double() - values.double()).abs()
    assert bool((lost <= values.double().abs() / 256 + 2.0**-126).all())


@given(NUMBERS, st.sampled_from(SHORT))
def test_a_decoded_tensor_is_encoded_as_it_was(array: np.ndarray, encoding: Encoding) -> None:
    values = torch.from_numpy(array)
    once = decode(encode(values, encoding), tuple(values.shape))
    twice = decode(encode(once, encoding), tuple(values.shape))
    # The largest over 127 and back may differ in the last bit; the whole numbers do not.
    assert torch.allclose(once, twice, rtol=2.0**-22, atol=2.0**-119)


@given(NUMBERS)
def test_an_int8_tensor_has_a_byte_for_each_number_and_four_for_each_block(
    array: np.ndarray,
) -> None:
    sent = encode(torch.from_numpy(array), "int8")
    assert sent.dtype == torch.int8
    assert sent.numel() == array.size + 4 * math.ceil(array.size / BLOCK)


def test_zeros_stay_zeros_and_tiny_numbers_become_zero() -> None:
    values = torch.tensor([[0.0] * BLOCK, [1e-44] * BLOCK, [1e-38] * BLOCK, [3e-36] * BLOCK])
    found = decode(encode(values, "int8"), (4, BLOCK))
    assert found[:3].count_nonzero() == 0
    assert torch.allclose(found[3], values[3])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("encoding", SHORT)
def test_what_is_not_finite_or_too_large_is_not_encoded(bad: float, encoding: Encoding) -> None:
    with pytest.raises(PartsumError, match="cannot be encoded"):
        encode(torch.tensor([[1.0, bad]]), encoding)


def model(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "wide.weight": torch.randn(20, 30, generator=generator),
        "wide.bias": torch.randn(20, generator=generator),
        "norm.running_var": torch.rand(20, generator=generator),
        "norm.count": torch.tensor(seed),
        "empty.weight": torch.zeros(0, 4),
        "half.weight": torch.randn(3, 3, generator=generator).half(),
    }


def written(folder: Path, encoding: Encoding, lost: bool = False) -> tuple[Path, Path, str]:
    """A model, one that it is a change against, and that one's digest."""
    digest = save_tensors(folder / "old", model(1), durable=False)
    save_tensors(folder / "new", model(2), durable=False)
    with TensorFile(folder / "new") as new, TensorFile(folder / "old") as old:
        shapes = file_shapes(new)

        def change(name: str) -> Tensor:
            matrix = name in {"wide.weight", "empty.weight"}
            return new.read(name) - old.read(name) if matrix else new.read(name)

        beside = folder / "lost" if lost else None
        write_encoded(folder / "sent", shapes, encoding, digest, change, beside, {"part": "p"})
    return folder / "new", folder / "sent", digest


@pytest.mark.parametrize("encoding", SHORT)
def test_matrices_are_shortened_and_all_else_travels_as_it_is(
    tmp_path: Path, encoding: Encoding
) -> None:
    new, sent, digest = written(tmp_path, encoding, lost=True)
    with TensorFile(new) as plain, TensorFile(tmp_path / "old") as old:
        shapes = file_shapes(plain)
        with Encoded(sent, shapes, encoding, digest) as encoded:
            first = restore(encoded, old.read, tmp_path / "out", {"part": "p"})
        with Encoded(sent, shapes, encoding, digest) as encoded:
            assert restore(encoded, old.read, tmp_path / "again", {"part": "p"}) == first
    found, lost = load_tensors(tmp_path / "out"), load_tensors(tmp_path / "lost")
    assert set(lost) == {"wide.weight", "empty.weight"}
    for name, value in model(2).items():
        if name in lost:
            assert not lost[name].numel() or not torch.equal(found[name], value)
            assert torch.allclose(found[name] + lost[name], value, atol=1e-6)
        else:
            assert torch.equal(found[name], value)
    saved = 1 if encoding == "bfloat16" else 2
    assert sent.stat().st_size < new.stat().st_size - 600 * saved


def changed(sent: Path, name: str, value: Tensor | None, **metadata: str) -> None:
    """The encoded file with one tensor, or its metadata, as somebody else would have them."""
    tensors = load_tensors(sent)
    with TensorFile(sent) as file:
        metadata = {**file.metadata, **metadata}
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    save_tensors(sent, tensors, metadata, durable=False)


def scaled(sent: Path, scale: float) -> Tensor:
    value = load_tensors(sent)["wide.weight"]
    value[-4:] = torch.tensor([scale]).view(torch.int8)
    return value


BAD: dict[str, tuple[Callable[[Path], Tensor | None], str]] = {
    "no matrix": (lambda sent: None, "is missing"),
    "a scale too few": (lambda sent: load_tensors(sent)["wide.weight"][:-4], "expected torch.int8"),
    "a scale too many": (lambda sent: torch.zeros(620, dtype=torch.int8), "expected torch.int8"),
    "another dtype": (lambda sent: torch.zeros(612, dtype=torch.uint8), "expected torch.int8"),
    "not encoded": (lambda sent: torch.zeros(20, 30), "expected torch.int8"),
    "a scale that is nan": (lambda sent: scaled(sent, math.nan), "scale that is negative"),
    "an infinite scale": (lambda sent: scaled(sent, math.inf), "scale that is negative"),
    "a negative scale": (lambda sent: scaled(sent, -1.0), "scale that is negative"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_encoded_file_is_refused_with_the_tensors_name(tmp_path: Path, what: str) -> None:
    new, sent, digest = written(tmp_path, "int8")
    make, said = BAD[what]
    changed(sent, "wide.weight", make(sent))
    with (
        TensorFile(new) as plain,
        TensorFile(tmp_path / "old") as old,
        pytest.raises(WireError, match=f"tensor 'wide.weight'.* {said}"),
        Encoded(sent, file_shapes(plain), "int8", digest) as encoded,
    ):
        restore(encoded, old.read, tmp_path / "out")
    assert not list(tmp_path.glob("*out*")), "nothing is left"


def test_a_change_against_something_else_or_in_another_encoding_is_refused(tmp_path: Path) -> None:
    new, sent, digest = written(tmp_path, "int8")
    with TensorFile(new) as plain:
        shapes = file_shapes(plain)
        with pytest.raises(WireError, match=r"its against is .* expected '00"):
            Encoded(sent, shapes, "int8", "0" * 32)
        with pytest.raises(WireError, match="its encoding is 'int8', expected 'bfloat16'"):
            Encoded(sent, shapes, "bfloat16", digest)
        changed(sent, "more", torch.zeros(3))
        with pytest.raises(WireError, match="'more' is not in this model"):
            Encoded(sent, shapes, "int8", digest)
        with pytest.raises(WireError, match=r"expected torch\.float32"), TensorFile(sent) as file:
            check_forms(file, {**file_shapes(file), "wide.weight": (torch.float32, (20, 30))})


def test_a_value_that_cannot_be_encoded_leaves_no_file(tmp_path: Path) -> None:
    shapes = {"w": (torch.float32, (2, 2))}
    assert encoded_shapes(shapes, "int8") == {"w": (torch.int8, (8,))}
    with pytest.raises(PartsumError, match="tensor 'w': a value of inf cannot be encoded"):
        write_encoded(tmp_path / "f", shapes, "int8", "", lambda name: torch.full((2, 2), math.inf))
    assert not list(tmp_path.iterdir())
