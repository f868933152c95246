"""A bad update is refused whole, with its kind and the name of the tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from partsum.coordinator.contribution import Tensors
from partsum.coordinator.records import PlannedPart
from partsum.coordinator.updates import check_claim, check_update, part_shapes
from partsum.shared.encoding import Shapes
from partsum.shared.errors import UpdateRefusedError
from partsum.shared.messages import Blob, Update
from partsum.shared.part import Part, cut_module
from partsum.shared.tensors import save_tensors
from partsum.shared.width import find_widths

PART = Part({"0": (1, 2, 5)})
BLOB = Blob("a" * 32, 100)
PLANNED = PlannedPart(
    part=PART, seed=1, start=BLOB, cluster=BLOB, first_sample=0, num_samples=64, holder=""
)
UPDATE = Update(
    assignment_id="r0-p0",
    round=0,
    part_index=0,
    start_digest=BLOB.digest,
    num_samples=64,
    loss=1.5,
    train_seconds=1.0,
    samples_per_second=64.0,
    peak_memory_bytes=1,
    blob=BLOB,
)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def shapes() -> Shapes:
    with torch.device("meta"):
        hollow = model()
    return part_shapes(hollow, find_widths(hollow), PART)


def good() -> dict[str, Tensor]:
    whole = model()
    return dict(cut_module(whole, find_widths(whole), PART).state_dict())


def set_value(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        state["3.weight"][1, 2] = value

    return change


def rename(state: dict[str, Tensor]) -> None:
    state["other"] = torch.ones(1)


def cast(state: dict[str, Tensor]) -> None:
    state["0.weight"] = state["0.weight"].double()


def count_as_float(state: dict[str, Tensor]) -> None:
    state["1.num_batches_tracked"] = torch.tensor(1.0)


def widen(state: dict[str, Tensor]) -> None:
    state["0.weight"] = torch.ones(6, 4)


def turn(state: dict[str, Tensor]) -> None:
    state["3.weight"] = state["3.weight"].T.contiguous()


def test_an_update_of_its_part_is_accepted(tmp_path: Path) -> None:
    save_tensors(tmp_path / "u", good(), durable=False)
    check_update(tmp_path / "u", shapes())
    check_claim(UPDATE, PLANNED, 10**6)


@pytest.mark.parametrize(
    ("spoil", "kind", "name"),
    [
        (lambda state: state.pop("3.bias"), "missing", "3.bias"),
        (rename, "extra", "other"),
        (widen, "shape", "0.weight"),
        (turn, "shape", "3.weight"),
        (cast, "dtype", "0.weight"),
        (count_as_float, "dtype", "1.num_batches_tracked"),
        (set_value(float("nan")), "not_finite", "3.weight"),
        (set_value(float("inf")), "not_finite", "3.weight"),
        (set_value(float("-inf")), "not_finite", "3.weight"),
        (set_value(-1.8e38), "not_finite", "3.weight"),  # two such, and their difference is inf
    ],
)
def test_an_update_with_a_bad_tensor_is_refused_with_its_name(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], object], kind: str, name: str
) -> None:
    state = good()
    spoil(state)
    save_tensors(tmp_path / "u", state, durable=False)
    with pytest.raises(UpdateRefusedError, match=f"tensor {name!r}") as caught:
        check_update(tmp_path / "u", shapes())
    assert caught.value.kind == kind


def test_an_update_whose_file_is_damaged_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "u", good(), durable=False)
    content = (tmp_path / "u").read_bytes()
    (tmp_path / "u").write_bytes(content[:-1])
    with pytest.raises(UpdateRefusedError, match="its header speaks of") as caught:
        check_update(tmp_path / "u", shapes())
    assert caught.value.kind == "damaged"


@pytest.mark.parametrize(
    ("update", "kind", "said"),
    [
        (replace(UPDATE, start_digest="b" * 32), "base", "b" * 32 + ", but this round"),
        (replace(UPDATE, start_digest=""), "base", "from a fresh part"),
        (replace(UPDATE, num_samples=6400), "samples", "counts 6400 samples, but 64"),
        (replace(UPDATE, num_samples=0), "samples", "counts 0 samples"),
        (replace(UPDATE, loss=float("nan")), "not_finite", "training loss is nan"),
        (replace(UPDATE, train_seconds=float("inf")), "not_finite", "train_seconds is inf"),
        (replace(UPDATE, train_seconds=1e308), "not_finite", "train_seconds is 1e.308"),
        (replace(UPDATE, samples_per_second=-1.0), "not_finite", "samples_per_second is -1.0"),
        (replace(UPDATE, loss=float("inf")), "not_finite", "training loss is inf"),
        # Only the file that travels is digested: no other may be named in its place.
        (replace(UPDATE, encoded=Blob("e" * 32, 100)), "encoding", "e" * 32 + " in place of"),
    ],
)
def test_an_update_that_claims_what_was_not_asked_is_refused(
    update: Update, kind: str, said: str
) -> None:
    with pytest.raises(UpdateRefusedError, match=said) as caught:
        check_claim(update, PLANNED, 10**6)
    assert caught.value.kind == kind


def test_a_fresh_part_must_not_come_from_a_base() -> None:
    fresh = replace(PLANNED, start=None)
    check_claim(replace(UPDATE, start_digest=""), fresh, 10**6)
    with pytest.raises(UpdateRefusedError, match="starts from a fresh part"):
        check_claim(UPDATE, fresh, 10**6)


def test_an_update_larger_than_the_base_is_refused_before_a_byte_is_taken() -> None:
    with pytest.raises(UpdateRefusedError, match="announces 100 B, more than the base's 99"):
        check_claim(UPDATE, PLANNED, 99)


def test_counters_grow_by_the_samples_at_most_and_tables_of_integers_stay(tmp_path: Path) -> None:
    start = {"seen": torch.tensor(5), "index": torch.arange(4), "mask": torch.tensor([True, False])}
    expected = {name: (t.dtype, tuple(t.shape)) for name, t in start.items()}

    def check(**changes: torch.Tensor) -> None:
        save_tensors(tmp_path / "u", {**start, **changes}, durable=False)
        check_update(tmp_path / "u", expected, Tensors(start), samples=64)

    check()
    check(seen=torch.tensor(69))
    check(seen=torch.tensor(0))  # a pointer that went round
    for wrong in (
        {"seen": torch.tensor(70)},
        {"seen": torch.tensor(-1)},
        {"index": torch.tensor([0, 1, 2, 10**12])},
        {"mask": torch.tensor([True, True])},
    ):
        with pytest.raises(UpdateRefusedError, match=next(iter(wrong))) as caught:
            check(**wrong)
        assert caught.value.kind == "integers"
