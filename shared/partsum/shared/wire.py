"""Protobuf to plain values and back: the only converter, and the only place that knows both."""

from __future__ import annotations

import re
from collections.abc import Iterable

import xxhash

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import limits, wire_gang, wire_secure
from partsum.shared import messages as m
from partsum.shared.errors import WireError
from partsum.shared.frames import Frame
from partsum.shared.wire_part import part_from_wire as part_from_wire
from partsum.shared.wire_part import part_to_wire as part_to_wire
from partsum.shared.wire_settings import (
    ENCODING_NUMBERS,
    known,
)
from partsum.shared.wire_settings import (
    settings_from_wire as settings_from_wire,
)
from partsum.shared.wire_settings import (
    settings_to_wire as settings_to_wire,
)
from partsum.shared.wire_zero import zero_from_wire, zero_to_wire

PROTOCOL = 3  # raised when old and new can no longer talk

_DIGEST = re.compile(r"[0-9a-f]{32}")
ENCODINGS = tuple(ENCODING_NUMBERS.values())
"""What a node of this version says it knows."""


def known_encodings(numbers: Iterable[int]) -> set[m.Encoding]:
    """The encodings among those that a node says it knows; float32 is always one."""
    said = {*numbers, pb.ENCODING_FLOAT32}
    return {name for name, number in ENCODING_NUMBERS.items() if number in said}


def blob_to_wire(blob: m.Blob) -> pb.Blob:
    """A Blob as protobuf."""
    return pb.Blob(digest=blob.digest, size_bytes=blob.size_bytes)


def blob_from_wire(blob: pb.Blob) -> m.Blob:
    """Raises WireError for a digest that is not one: it becomes a file's name."""
    if not _DIGEST.fullmatch(blob.digest) or not 0 <= blob.size_bytes <= limits.COUNT:
        raise WireError(f"{blob.digest[:40]!r} of {blob.size_bytes} B is not a blob")
    return m.Blob(blob.digest, blob.size_bytes)


def assignment_to_wire(assignment: m.Assignment) -> pb.Assignment:
    """An Assignment as protobuf."""
    start, samples, masking = assignment.start, assignment.samples, assignment.masking
    delta = assignment.start_delta
    return pb.Assignment(
        id=assignment.id,
        round=assignment.round,
        part_index=assignment.part_index,
        part=part_to_wire(assignment.part),
        seed=assignment.seed,
        start=blob_to_wire(start) if start else None,
        cluster=blob_to_wire(assignment.cluster),
        samples=blob_to_wire(samples) if samples else None,
        first_sample=assignment.first_sample,
        num_samples=assignment.num_samples,
        progress_start=assignment.progress[0],
        progress_end=assignment.progress[1],
        settings=settings_to_wire(assignment.settings),
        masking=wire_secure.masking_to_wire(masking) if masking else None,
        ahead_to=assignment.ahead_to,
        start_delta=_delta_to_wire(delta) if delta else None,
        zero=zero_to_wire(assignment.zero) if assignment.zero else None,
        gang=wire_gang.place_to_wire(assignment.gang) if assignment.gang else None,
    )


def _delta_to_wire(delta: m.Delta) -> pb.Delta:
    return pb.Delta(blob=blob_to_wire(delta.blob), against=blob_to_wire(delta.against))


def _delta_from_wire(delta: pb.Delta) -> m.Delta:
    return m.Delta(blob_from_wire(delta.blob), blob_from_wire(delta.against))


def assignment_from_wire(assignment: pb.Assignment) -> m.Assignment:
    """Raises WireError where a field cannot be what it says."""
    a = assignment
    return m.Assignment(
        id=limits.short(a.id, "an assignment's name"),
        round=limits.within(a.round, 0, limits.COUNT, "round"),
        part_index=limits.within(a.part_index, 0, limits.COUNT, "part_index"),
        part=part_from_wire(a.part),
        seed=a.seed,
        start=blob_from_wire(a.start) if a.HasField("start") else None,
        cluster=blob_from_wire(a.cluster),
        samples=blob_from_wire(a.samples) if a.HasField("samples") else None,
        first_sample=limits.within(a.first_sample, 0, limits.COUNT, "first_sample"),
        num_samples=limits.within(a.num_samples, 0, limits.COUNT, "num_samples"),
        progress=(
            limits.within(a.progress_start, 0, 1, "progress_start"),
            limits.within(a.progress_end, a.progress_start, 1, "progress_end"),
        ),
        settings=settings_from_wire(a.settings),
        masking=wire_secure.masking_from_wire(a.masking) if a.HasField("masking") else None,
        ahead_to=limits.within(a.ahead_to, a.progress_end if a.ahead_to else 0, 1, "ahead_to"),
        start_delta=_delta_from_wire(a.start_delta) if a.HasField("start_delta") else None,
        zero=zero_from_wire(a.zero) if a.HasField("zero") else None,
        gang=wire_gang.place_from_wire(a.gang) if a.HasField("gang") else None,
    )


def update_to_wire(update: m.Update) -> pb.Update:
    """An Update as protobuf."""
    return pb.Update(
        assignment=update.assignment_id,
        round=update.round,
        part_index=update.part_index,
        start_digest=update.start_digest,
        num_samples=update.num_samples,
        loss=update.loss,
        train_seconds=update.train_seconds,
        samples_per_second=update.samples_per_second,
        peak_memory_bytes=update.peak_memory_bytes,
        blob=blob_to_wire(update.blob),
        session=update.session,
        encoded=blob_to_wire(update.encoded) if update.encoded else None,
        encoding=ENCODING_NUMBERS[update.encoding],
    )


def update_from_wire(update: pb.Update) -> m.Update:
    """Raises WireError where a blob's digest is not one, a name too long, an encoding not known.

    What it says of its training is checked against its assignment, by whoever gave that out.
    """
    return m.Update(
        assignment_id=limits.short(update.assignment, "an assignment's name"),
        round=update.round,
        part_index=update.part_index,
        start_digest=limits.short(update.start_digest, "the digest of an update's start"),
        num_samples=update.num_samples,
        loss=update.loss,
        train_seconds=update.train_seconds,
        samples_per_second=update.samples_per_second,
        peak_memory_bytes=update.peak_memory_bytes,
        blob=blob_from_wire(update.blob),
        session=limits.short(update.session, "a session"),
        encoded=blob_from_wire(update.encoded) if update.HasField("encoded") else None,
        encoding=known(ENCODING_NUMBERS, update.encoding or pb.ENCODING_FLOAT32, "encoding"),
    )


def status_to_wire(status: m.RunStatus) -> pb.RunStatus:
    """A RunStatus as protobuf; the field names are the same on both sides."""
    values = {k: value for k, value in vars(status).items() if k not in {"nodes", "standings"}}
    nodes = [pb.NodeStatus(**vars(node)) for node in status.nodes]
    standings = [pb.Standing(**vars(one)) for one in status.standings]
    return pb.RunStatus(**values, nodes=nodes, standings=standings)


def status_from_wire(status: pb.RunStatus) -> m.RunStatus:
    """A RunStatus from protobuf."""
    nodes = tuple(
        m.NodeStatus(**{name: getattr(node, name) for name in m.NodeStatus.__dataclass_fields__})
        for node in status.nodes
    )
    standings = tuple(
        m.Standing(**{name: getattr(one, name) for name in m.Standing.__dataclass_fields__})
        for one in status.standings
    )
    fields = m.RunStatus.__dataclass_fields__.keys() - {"nodes", "standings"}
    values = {name: getattr(status, name) for name in fields}
    return m.RunStatus(**values, nodes=nodes, standings=standings)


def chunk_to_wire(offset: int, data: bytes) -> pb.Chunk:
    """A piece of a blob with its checksum."""
    return pb.Chunk(offset=offset, data=data, checksum=xxhash.xxh3_64_intdigest(data))


def chunk_from_wire(chunk: pb.Chunk | Frame, expected_offset: int) -> bytes | memoryview:
    """The chunk's bytes. Raises WireError where it is damaged, empty or not the next one."""
    if not chunk.data:
        raise WireError(f"an empty chunk came at offset {chunk.offset}: it leads nowhere")
    if chunk.offset != expected_offset:
        raise WireError(f"a chunk at offset {chunk.offset} came where {expected_offset} was next")
    if xxhash.xxh3_64_intdigest(chunk.data) != chunk.checksum:
        raise WireError(f"the chunk at offset {chunk.offset} was damaged on its way")
    return chunk.data
