"""Messages come back from the wire as they were, and nothing damaged gets through."""

from __future__ import annotations

import math
import re
import tracemalloc
from dataclasses import replace

import pytest
from google.protobuf.message import DecodeError
from hypothesis import assume, given
from hypothesis import strategies as st

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import frames, limits, wire, wire_gang
from partsum.shared import messages as m
from partsum.shared.errors import WireError
from partsum.shared.frames import Frame

names = st.text("ab.0_\u00e9", max_size=6)
counts = st.integers(0, 2**31 - 1)
longs = st.integers(0, limits.COUNT)
floats = st.floats(allow_nan=False)
sizes = st.floats(0, allow_infinity=False)
shares = st.floats(0, 1)
blobs = st.builds(m.Blob, st.text("0123456789abcdef", min_size=32, max_size=32), longs)
units = st.sets(st.integers(0, 300), min_size=1).map(lambda found: tuple(sorted(found)))
parts = st.dictionaries(names, units, max_size=4).map(m.Part)
settings = st.builds(
    m.TrainSettings,
    batch_size=st.integers(1, limits.BATCH_SIZE),
    learning_rate=sizes,
    width_lr_power=sizes,
    weight_decay=sizes,
    betas=st.tuples(shares, shares),
    gradient_clip=sizes,
    warmup=shares,
    precision=st.sampled_from(["float32", "bfloat16"]),
    aggregate=st.sampled_from(["weights", "gradients"]),
    deterministic=st.booleans(),
    keep_moments=st.booleans(),
)
members = st.lists(parts, min_size=1, max_size=4).map(tuple)
places = members.flatmap(
    lambda found: st.builds(
        m.GangPlace,
        id=names,
        rank=st.integers(0, len(found) - 1),
        parts=st.just(found),
        backend=st.sampled_from(["gloo", "nccl"]),
        secret=names,
        timeout_seconds=sizes,
    )
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
    progress=st.tuples(shares, shares).map(lambda pair: (min(pair), max(pair))),
    settings=settings,
    ahead_to=st.sampled_from([0.0, 1.0]),
    gang=st.none() | places,
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
phases = st.sampled_from(
    ["waiting", "parts", "cotrain", "handoff", "finished", "stopped", "failed"]
)
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


@pytest.mark.parametrize("size", [-1, limits.COUNT + 1, 2**63 - 1])
def test_a_blob_of_a_size_that_there_is_not_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"of {size} B is not a blob"):
        wire.blob_from_wire(pb.Blob(digest="a" * 32, size_bytes=size))


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


def test_a_small_message_that_names_millions_of_units_is_refused_before_they_are_written_out() -> (
    None
):
    half = limits.UNITS // 2 + 1
    part = pb.Part(units={name: pb.UnitRanges(starts=[0], ends=[half]) for name in ("a", "b")})
    assert part.ByteSize() < 60
    tracemalloc.start()
    with pytest.raises(WireError, match=f"units is {2 * half}, which is not between"):
        wire.part_from_wire(part)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_part_of_too_many_width_groups_or_of_one_with_an_endless_name_is_refused() -> None:
    one = pb.UnitRanges(starts=[0], ends=[1])
    many = pb.Part(units={str(k): one for k in range(limits.GROUPS + 1)})
    with pytest.raises(WireError, match="the number of a part's width groups is 65537"):
        wire.part_from_wire(many)
    with pytest.raises(WireError, match="a width group's name has 3000000 characters"):
        wire.part_from_wire(pb.Part(units={"x" * 3_000_000: one}))


GOOD = wire.assignment_to_wire(
    m.Assignment(
        "r0-p0", 0, 0, m.Part({"g": (0, 1)}), 5, None, m.Blob("a" * 32, 8), None, 0, 9, (0.0, 0.5),
        m.TrainSettings(
            4, 0.1, 0.5, 0.0, (0.9, 0.99), 0.0, 0.01, "float32", "weights", deterministic=True
        ),
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "x" * 300),
        ("round", -1),
        ("part_index", -(2**31)),
        ("first_sample", -1),
        ("num_samples", -1),
        ("num_samples", 2**63 - 1),
        ("progress_start", math.nan),
        ("progress_start", 0.6),
        ("progress_end", 1.5),
        ("progress_end", -math.inf),
        ("ahead_to", 0.1),
        ("ahead_to", 1.5),
        ("ahead_to", math.nan),
        ("settings.batch_size", 0),
        ("settings.batch_size", 2**31 - 1),
        ("settings.learning_rate", math.nan),
        ("settings.learning_rate", math.inf),
        ("settings.learning_rate", -0.1),
        ("settings.beta1", 1.5),
        ("settings.beta2", math.nan),
        ("settings.gradient_clip", -1.0),
        ("settings.weight_decay", math.inf),
        ("settings.width_lr_power", math.nan),
        ("settings.warmup", 2.0),
        ("settings.proximal", -1.0),
        ("settings.proximal", math.inf),
    ],
)
def test_an_assignment_with_a_number_that_cannot_be_is_refused_with_its_name(
    field: str, value: object
) -> None:
    wire.assignment_from_wire(GOOD)
    wrong = pb.Assignment()
    wrong.CopyFrom(GOOD)
    *path, name = field.split(".")
    setattr(wrong.settings if path else wrong, name, value)
    said = "an assignment's name" if name == "id" else name
    with pytest.raises(WireError, match=f"{said}|progress_end"):
        wire.assignment_from_wire(wrong)


@pytest.mark.parametrize("field", ["assignment", "start_digest", "session"])
def test_an_update_with_an_endless_name_is_refused(field: str) -> None:
    update = pb.Update(blob=pb.Blob(digest="a" * 32, size_bytes=1))
    wire.update_from_wire(update)
    setattr(update, field, "x" * 3_000_000)
    with pytest.raises(WireError, match="has 3000000 characters, more than 256"):
        wire.update_from_wire(update)


def test_an_empty_chunk_is_refused_for_it_leads_nowhere() -> None:
    with pytest.raises(WireError, match="an empty chunk came at offset 4"):
        wire.chunk_from_wire(wire.chunk_to_wire(4, b""), 4)


def test_what_the_other_side_says_fits_on_one_line_of_a_log() -> None:
    assert limits.in_words("a disk\nis\x1b[31m full") == "a disk is [31m full"
    assert len(limits.in_words("x" * 4_000_000)) == limits.WORDS_CHARACTERS


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


@given(
    offset=st.integers(0, 2**63 - 1),
    data=st.binary(max_size=300),
    checksum=st.integers(0, 2**64 - 1),
)
def test_frames_are_the_bytes_that_protobuf_makes_of_chunks(
    offset: int, data: bytes, checksum: int
) -> None:
    assume(data)  # an empty chunk is never sent
    chunk, frame = (
        pb.Chunk(offset=offset, data=data, checksum=checksum),
        Frame(offset, data, checksum),
    )
    assume(checksum)  # which protobuf leaves out where it is zero; either is understood
    pushed, pulled = pb.PushRequest(chunk=chunk), pb.PullResponse(chunk=chunk)
    assert frames.push_to_bytes(frame) == pushed.SerializeToString()
    assert frames.pull_to_bytes(frame) == pulled.SerializeToString()
    for found in (
        frames.push_from_bytes(pushed.SerializeToString()),
        frames.pull_from_bytes(pulled.SerializeToString()),
    ):
        assert isinstance(found, Frame)
        assert (found.offset, bytes(found.data), found.checksum) == (offset, data, checksum)


@given(raw=st.binary(max_size=60), field=st.sampled_from([b"", b"\x0a", b"\x12"]))
def test_frames_read_what_protobuf_reads_and_nothing_else(raw: bytes, field: bytes) -> None:
    raw = field + raw
    try:
        message = pb.PushRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            frames.push_from_bytes(raw)
        return
    found = frames.push_from_bytes(raw)
    if not message.HasField("chunk"):
        assert found == message
        return
    assert isinstance(found, Frame)
    chunk = message.chunk
    assert (found.offset, bytes(found.data)) == (chunk.offset, chunk.data)
    assert found.checksum == chunk.checksum


def test_a_chunk_in_another_order_is_a_chunk() -> None:
    tail = (
        pb.Chunk(checksum=7).SerializeToString() + pb.Chunk(offset=5, data=b"x").SerializeToString()
    )
    for head in (b"\x12", b"\x0a"):
        raw = head + bytes([len(tail)]) + tail
        found = frames.push_from_bytes(raw) if head == b"\x12" else frames.pull_from_bytes(raw)
        assert found == Frame(5, b"x", 7)


def test_a_parts_gates_cross_the_wire_and_are_held_to_limits() -> None:
    part = m.Part({"hidden": (0, 1, 5)}, {"blocks.0.mlp": False, "blocks.1.mlp": True})
    assert wire.part_from_wire(wire.part_to_wire(part)) == part
    many = pb.Part(gates={f"gate {k}": False for k in range(limits.GATES + 1)})
    with pytest.raises(WireError, match="number of a part's gates"):
        wire.part_from_wire(many)
    with pytest.raises(WireError, match="a gate's name"):
        wire.part_from_wire(pb.Part(gates={"g" * (limits.NAME_CHARACTERS + 1): False}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 2}, "a rank is 2, which is not between 0 and 1"),
        ({"backend": 9}, "backend 9 of a gang is not known"),
        ({"timeout_seconds": math.nan}, "timeout_seconds is nan"),
        ({"secret": "x" * 300}, "a gang's secret has 300 characters"),
    ],
)
def test_a_place_that_no_gang_has_is_refused(change: dict[str, object], said: str) -> None:
    place = m.GangPlace("g", 0, (m.Part(), m.Part()), "gloo", "s", 1.0)
    sent = wire_gang.place_to_wire(place)
    for name, value in change.items():
        setattr(sent, name, value)
    with pytest.raises(WireError, match=re.escape(said)):
        wire_gang.place_from_wire(sent)


def test_a_gang_has_members_and_not_too_many() -> None:
    with pytest.raises(WireError, match="the number of a gang's members is 0"):
        wire_gang.place_from_wire(pb.GangPlace())
    crowd = pb.GangPlace(parts=[pb.Part()] * (limits.MEMBERS + 1))
    with pytest.raises(WireError, match="the number of a gang's members is 1025"):
        wire_gang.place_from_wire(crowd)
