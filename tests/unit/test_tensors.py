"""Our safetensors files: the same as everybody's, and damaged ones are refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from partsum.shared import limits
from partsum.shared.errors import PartsumError, WireError
from partsum.shared.files import file_digest
from partsum.shared.tensors import (
    DTYPES,
    TensorFile,
    TensorWriter,
    header_bytes,
    load_tensors,
    save_tensors,
)


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    state = {}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    for name in draw(st.sets(st.text("ab.0_\u00e9", min_size=1, max_size=6), max_size=5)):
        dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        state[name] = torch.randint(-3, 4, shape, generator=generator).to(dtype)
    return state


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def small_file(path: Path) -> bytes:
    state = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(7), "m": torch.tensor([True])}
    save_tensors(path, state, {"partsum.base": "3"}, durable=False)
    return path.read_bytes()


@given(state_dicts())
def test_a_state_dict_comes_back_from_its_file_as_it_was(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_tensors(tmp_path / "f", state, durable=False)
    assert same(load_tensors(tmp_path / "f"), state)


@given(state_dicts())
def test_our_files_load_with_safetensors_and_theirs_with_ours(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_tensors(tmp_path / "ours", state, {"a": "b"}, durable=False)
    assert same(safetensors.torch.load_file(tmp_path / "ours"), state)
    safetensors.torch.save_file(state, tmp_path / "theirs", {"a": "b"})
    assert same(load_tensors(tmp_path / "theirs"), state)


@given(state_dicts())
def test_same_tensors_make_the_same_bytes_whatever_their_order(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    digest = save_tensors(tmp_path / "one", state)
    again = save_tensors(tmp_path / "two", dict(reversed(state.items())))
    assert digest == again == file_digest(tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_slices_and_shared_storage_are_written_out_one_by_one(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": whole, "b": whole, "columns": whole[:, ::2], "turned": whole.T}
    save_tensors(tmp_path / "f", state, durable=False)
    assert same(load_tensors(tmp_path / "f"), state)


def test_metadata_comes_back(tmp_path: Path) -> None:
    small_file(tmp_path / "f")
    with TensorFile(tmp_path / "f") as file:
        assert file.metadata == {"partsum.base": "3"}


def test_an_abandoned_file_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path / "f", {"w": (torch.float32, (2,))})
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
    writer.abandon()
    assert not list(tmp_path.iterdir())


def test_a_file_keeps_its_old_content_when_writing_the_new_one_fails(tmp_path: Path) -> None:
    before = small_file(tmp_path / "f")

    class Unreadable(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_tensors(tmp_path / "f", Unreadable(w=torch.ones(2)))
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == before


def test_a_dtype_that_no_file_can_hold_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    with pytest.raises(PartsumError, match=r"'rotary' is torch.complex64.*torch.float32"):
        save_tensors(tmp_path / "f", {"rotary": torch.ones(2, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (2**63).to_bytes(8, "little"),
        (100).to_bytes(8, "little") + b"{}",
        with_header(b"\xff\xfe"),
        with_header(b"[" * 100_000 + b"]" * 100_000),
        with_header(b'{"w": ' * 50_000 + b"1" + b"}" * 50_000),
        with_header([1, 2]),
        with_header("w"),
        with_header(3),
        with_header(None),
        with_header({"w": 3}),
        with_header({"w": {}}),
        with_header({"__metadata__": [1]}),
        with_header({"w": entry([2], [0, 8])}, bytes(7)),
        with_header({"w": entry([2], [0, 8])}, bytes(9)),
        with_header({"w": entry([2], [0, 8]), "v": entry([2], [4, 12])}, bytes(12)),
        with_header({"w": entry([2], [0, 8]), "v": entry([2], [0, 8])}, bytes(8)),
        with_header({"w": entry([2], [0, 8]), "v": entry([2], [12, 20])}, bytes(20)),
        with_header({"w": entry([2], [-8, 0])}),
        with_header({"w": entry([-2], [0, 8])}, bytes(8)),
        with_header({"w": entry([-1, -2], [0, 8])}, bytes(8)),
        with_header({"w": entry([2], [8, 0])}, bytes(8)),
        with_header({"w": entry([3], [0, 8])}, bytes(8)),
        with_header({"w": entry([2.0], [0, 8])}, bytes(8)),
        with_header({"w": entry([True], [0, 4])}, bytes(4)),
        with_header({"w": entry("2", [0, 8])}, bytes(8)),
        with_header({"w": entry([2], [0, 8], "F8_E4M3")}, bytes(8)),
        with_header({"w": entry([2], [0, 8], ["F32"])}, bytes(8)),
        with_header({"w": entry([0, 2**63], [0, 0])}),
        with_header({"w": entry([0, 2**40, 2**40], [0, 0])}),
        with_header({"w": entry([10**30, 0], [0, 0])}),
        with_header({"w": entry([1] * 17, [0, 4])}, bytes(4)),
        with_header(b" " * (limits.TENSORS_HEADER_BYTES + 1)),
        with_header(b'{"w": {"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'),
    ],
    ids=range(35),
)
def test_a_file_that_is_not_well_formed_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(WireError, match=r"f[: ]"):
        load_tensors(tmp_path / "f")


@given(state_dicts())
def test_the_header_of_known_tensors_is_never_longer_than_is_said_beforehand(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_tensors(tmp_path / "f", state, {"part": "a" * 32}, durable=False)
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    TensorFile(tmp_path / "f", header_bytes(shapes)).close()


def test_a_header_that_is_longer_than_what_is_expected_is_not_even_read(tmp_path: Path) -> None:
    small_file(tmp_path / "f")
    with pytest.raises(WireError, match=r"has a header of .* B; at most 64 B are read"):
        TensorFile(tmp_path / "f", 64)


def test_tensors_that_no_header_can_name_are_refused_with_the_limit(tmp_path: Path) -> None:
    long = "n" * limits.TENSORS_HEADER_BYTES
    with pytest.raises(PartsumError, match=f"more than {limits.TENSORS_HEADER_BYTES} B"):
        save_tensors(tmp_path / "f", {long: torch.ones(1)})
    assert not list(tmp_path.iterdir())


def test_empty_tensors_may_stand_before_full_ones_at_the_same_place(tmp_path: Path) -> None:
    header = {"full": entry([1], [0, 4]), "empty": entry([0], [0, 0])}
    (tmp_path / "f").write_bytes(with_header(header, bytes(4)))
    assert {name: t.numel() for name, t in load_tensors(tmp_path / "f").items()} == {
        "full": 1,
        "empty": 0,
    }


@given(st.data())
def test_whatever_bytes_are_flipped_a_file_loads_or_is_refused(
    tmp_path: Path, drawn: st.DataObject
) -> None:
    content = bytearray(small_file(tmp_path / "f"))
    for _ in range(drawn.draw(st.integers(1, 4))):
        place = drawn.draw(st.integers(0, len(content) - 1))
        content[place] = drawn.draw(st.integers(0, 255))
    content = content[: drawn.draw(st.integers(0, len(content))) or None]
    (tmp_path / "f").write_bytes(content)
    try:
        loaded = load_tensors(tmp_path / "f")
    except WireError:
        return
    assert len(loaded) <= 3


def test_a_file_cut_short_while_it_is_open_is_refused(tmp_path: Path) -> None:
    content = small_file(tmp_path / "f")
    with TensorFile(tmp_path / "f") as file:
        (tmp_path / "f").write_bytes(content[:-20])
        with pytest.raises(WireError, match="cut short inside tensor 'w'"):
            file.read("w")
