"""Messages come back from the wire as they were, and nothing damaged gets through."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import messages as m
from partsum.shared import wire
from partsum.shared.errors import WireError

names = st.text("ab.0_\u00e9", max_size=6)
counts = st.integers(0, 2**31 - 1)
longs = st.integers(0, 2**62)
floats = st.floats(allow_nan=False)
blobs = st.builds(m.Blob, st.text("0123456789abcdef", min_size=32, max_size=32), longs)
units = st.sets(st.integers(0, 300), min_size=1).map(lambda found: tuple(sorted(found)))
parts = st.dictionaries(names, units, max_size=4).map(m.Part)
settings = st.builds(
    m.TrainSettings,
    batch_size=counts,
    learning_rate=floats,
    width_lr_power=floats,
    weight_decay=floats,
    betas=st.tuples(floats, floats),
    gradient_clip=floats,
    warmup=floats,
    precision=st.sampled_from(["float32", "bfloat16"]),
    aggregate=st.sampled_from(["weights", "gradients"]),
    deterministic=st.booleans(),
)
assignments = st.builds(
    m.Assignment,
    id=names,
    round=counts,
    part_index=counts,
    part=parts,
    seed=longs,
    start=st.none() | blobs,
    cluster=blobs,
    samples=st.none() | blobs,
    first_sample=longs,
    num_samples=longs,
    progress=st.tuples(floats, floats),
    settings=settings,
)
updates = st.builds(
    m.Update,
    assignment_id=names,
    round=counts,
    part_index=counts,
    start_digest=names,
    num_samples=longs,
    loss=floats,
    train_seconds=floats,
    samples_per_second=floats,
    peak_memory_bytes=longs,
    blob=blobs,
)
states = st.sampled_from(["loading", "idle", "receiving", "training", "sending", "gone", "benched"])
nodes = st.builds(
    m.NodeStatus, names, states, names, st.integers(-1, 99), floats, floats, floats, longs, longs
)
phases = st.sampled_from(["waiting", "parts", "handoff", "finished", "stopped", "failed"])
statuses = st.builds(
    m.RunStatus,
    run=names,
    phase=phases,
    reason=names,
    round=counts,
    rounds=counts,
    parts_in=counts,
    parts=counts,
    loss=floats,
    accuracy=floats,
    handoff_step=longs,
    handoff_steps=longs,
    elapsed_seconds=floats,
    bytes_sent=longs,
    bytes_received=longs,
    nodes=st.lists(nodes, max_size=3).map(tuple),
    folder=names,
)


@given(parts)
def test_a_part_comes_back_from_the_wire_with_its_units(part: m.Part) -> None:
    bytes_sent = wire.part_to_wire(part).SerializeToString()
    assert wire.part_from_wire(pb.Part.FromString(bytes_sent)) == part


def test_consecutive_units_travel_as_one_range() -> None:
    ranges = wire.part_to_wire(m.Part({"g": (0, 1, 2, 7, 9, 10)})).units["g"]
    assert list(ranges.starts) == [0, 7, 9]
    assert list(ranges.ends) == [3, 8, 11]


@given(assignments)
def test_an_assignment_comes_back_from_the_wire_as_it_was(assignment: m.Assignment) -> None:
    sent = wire.assignment_to_wire(assignment).SerializeToString()
    assert wire.assignment_from_wire(pb.Assignment.FromString(sent)) == assignment


@given(updates)
def test_an_update_comes_back_from_the_wire_as_it_was(update: m.Update) -> None:
    sent = wire.update_to_wire(update).SerializeToString()
    assert wire.update_from_wire(pb.Update.FromString(sent)) == update


@given(statuses)
def test_a_status_comes_back_from_the_wire_as_it_was(status: m.RunStatus) -> None:
    sent = wire.status_to_wire(status).SerializeToString()
    assert wire.status_from_wire(pb.RunStatus.FromString(sent)) == status


@given(statuses)
def test_figures_that_are_not_known_yet_stay_nan_on_the_wire(status: m.RunStatus) -> None:
    unknown = replace(status, loss=math.nan, accuracy=math.nan)
    back = wire.status_from_wire(wire.status_to_wire(unknown))
    assert math.isnan(back.loss)
    assert math.isnan(back.accuracy)
    assert replace(back, loss=0.0, accuracy=0.0) == replace(status, loss=0.0, accuracy=0.0)


@pytest.mark.parametrize(
    "digest", ["", "ab", "g" * 32, "A" * 32, "a" * 33, "a" * 31 + "\n", "../" + "a" * 29]
)
def test_a_digest_that_could_not_be_a_files_name_is_refused(digest: str) -> None:
    with pytest.raises(WireError, match="is not a blob"):
        wire.blob_from_wire(pb.Blob(digest=digest, size_bytes=1))


def test_a_blob_of_negative_size_is_refused() -> None:
    with pytest.raises(WireError, match="-1 B is not a blob"):
        wire.blob_from_wire(pb.Blob(digest="a" * 32, size_bytes=-1))


@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        ([], []),
        ([0], []),
        ([], [3]),
        ([0, 4], [3]),
        ([0, 2], [3, 5]),
        ([4, 0], [5, 2]),
        ([3], [3]),
        ([3], [2]),
        ([-1], [2]),
        ([0], [2**31 - 1]),
    ],
)
def test_ranges_that_are_no_sorted_units_are_refused(starts: list[int], ends: list[int]) -> None:
    part = pb.Part(units={"heads": pb.UnitRanges(starts=starts, ends=ends)})
    with pytest.raises(WireError, match="heads"):
        wire.part_from_wire(part)


@pytest.mark.parametrize("field", ["precision", "aggregate"])
@pytest.mark.parametrize("value", [0, 77])
def test_a_choice_that_this_version_does_not_know_is_refused(field: str, value: int) -> None:
    sent = pb.TrainSettings(
        precision=pb.PRECISION_FLOAT32, aggregate=pb.AGGREGATE_WEIGHTS, batch_size=1
    )
    setattr(sent, field, value)
    with pytest.raises(WireError, match=f"does not know {field} {value}"):
        wire.settings_from_wire(sent)


def test_an_assignment_without_a_cluster_is_refused() -> None:
    with pytest.raises(WireError):
        wire.assignment_from_wire(pb.Assignment(id="r0-p0"))


@given(st.binary(min_size=1, max_size=99), longs)
def test_a_chunk_comes_through_whole(data: bytes, offset: int) -> None:
    assert wire.chunk_from_wire(wire.chunk_to_wire(offset, data), offset) == data


@given(st.binary(min_size=1, max_size=99), st.data())
def test_a_chunk_with_one_bit_flipped_is_refused(data: bytes, drawn: st.DataObject) -> None:
    chunk = wire.chunk_to_wire(5, data)
    bit = drawn.draw(st.integers(0, len(data) * 8 - 1))
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    chunk.data = bytes(damaged)
    with pytest.raises(WireError, match="damaged on its way"):
        wire.chunk_from_wire(chunk, 5)


def test_a_chunk_that_is_not_the_next_one_is_refused() -> None:
    with pytest.raises(WireError, match="offset 8 came where 4 was next"):
        wire.chunk_from_wire(wire.chunk_to_wire(8, b"data"), 4)
