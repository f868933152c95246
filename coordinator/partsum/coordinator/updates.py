"""Updates are checked before they count: a bad one is refused whole, with the reason."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from partsum.coordinator.cohort import Change
from partsum.coordinator.contribution import Readable
from partsum.coordinator.records import PlannedPart
from partsum.coordinator.strategies.blocks import row_blocks
from partsum.shared import limits
from partsum.shared.encoded import used_encoding
from partsum.shared.encoding import Shapes
from partsum.shared.errors import UpdateRefusedError, WireError
from partsum.shared.messages import Encoding, Update
from partsum.shared.moments import is_moment, moment_shapes
from partsum.shared.part import Part, cut_module
from partsum.shared.tensors import TensorFile, header_bytes
from partsum.shared.width import Widths

_BLOCK_BYTES = 2 << 20


def part_shapes(shape: nn.Module, widths: Widths, part: Part, moments: bool = False) -> Shapes:
    """Names, dtypes and shapes of an update's tensors, from a model on the meta device.

    These are the part's state dict and, where they travel, AdamW's moments.
    """
    narrow = cut_module(shape, widths, part)
    state = {name: (t.dtype, tuple(t.shape)) for name, t in narrow.state_dict().items()}
    return state | (moment_shapes(narrow) if moments else {})


def check_claim(
    update: Update, planned: PlannedPart, largest_bytes: int, up: Encoding = "float32"
) -> None:
    """Check what an update says of itself, before a byte of it is taken. Raises UpdateRefused.

    ``largest_bytes`` is what no part's file can exceed: the base's, with room for a header; ``up``
    is how updates travel in this run.
    """
    announced = max(update.blob.size_bytes, update.sent.size_bytes)
    if announced > largest_bytes:
        raise UpdateRefusedError(
            "size", f"it announces {announced} B, more than the base's {largest_bytes}"
        )
    wanted = used_encoding(up, fresh=planned.start is None)
    found = update.encoding if update.encoded else "float32"
    if found != wanted:
        raise UpdateRefusedError("encoding", f"it travels as {found}, but {wanted} was asked for")
    if update.encoded and wanted == "float32":  # nothing would make the one out of the other
        raise UpdateRefusedError(
            "encoding",
            f"it sends {update.encoded.digest} in place of {update.blob.digest}, but in this run "
            "updates travel as they are",
        )
    base = planned.start.digest if planned.start else ""
    if update.start_digest != base:
        raise UpdateRefusedError(
            "base",
            f"it was trained from {update.start_digest or 'a fresh part'}, but this round starts "
            f"from {base or 'a fresh part'}",
        )
    if update.num_samples != planned.num_samples:
        raise UpdateRefusedError(
            "samples",
            f"it counts {update.num_samples} samples, but {planned.num_samples} were assigned",
        )
    if not math.isfinite(update.loss):
        raise UpdateRefusedError("not_finite", f"its training loss is {update.loss}")
    for what in ("train_seconds", "samples_per_second", "peak_memory_bytes"):
        value = getattr(update, what)
        if not 0 <= value <= limits.COUNT:  # a report could not draw it
            raise UpdateRefusedError("not_finite", f"its {what} is {value}")


def check_update(
    path: Path, expected: Shapes, origin: Readable | None = None, samples: int = 0
) -> Change:
    """Check the tensors of an update, one at a time. Raises UpdateRefused with the tensor's name.

    Refused: a missing or unknown tensor, another shape or dtype, a value that is not finite, a
    table of integers that is not ``origin``'s, a counter that grew by more than ``samples``, and a
    file that is not well formed. Returns how far it lies from ``origin``, or from zero.
    """
    squares: dict[str, float] = {}
    weights = 0
    try:
        with TensorFile(path, header_bytes(expected)) as file:
            _check_names(set(file.tensors), set(expected))
            for name, (dtype, shape) in expected.items():
                found = file.tensors[name]
                if found.shape != shape:
                    raise UpdateRefusedError(
                        "shape", f"tensor {name!r} has shape {found.shape}, expected {shape}"
                    )
                if found.dtype != dtype:
                    raise UpdateRefusedError(
                        "dtype", f"tensor {name!r} is {found.dtype}, expected {dtype}"
                    )
                if not dtype.is_floating_point:
                    if origin is not None:
                        _check_whole(name, file.read(name), origin.read(name), samples)
                elif is_moment(name):
                    _squared_change(file, name, None)
                else:
                    squares[name] = _squared_change(file, name, origin)
                    weights += math.prod(shape)
    except WireError as error:
        raise UpdateRefusedError("damaged", limits.in_words(str(error))) from error
    furthest = max(squares, key=lambda name: squares[name], default="")
    return Change(math.sqrt(sum(squares.values())), weights, furthest)


def _squared_change(file: TensorFile, name: str, origin: Readable | None) -> float:
    """Of a tensor's values, which must be finite; some rows at a time, which stay in the cache.

    Values closer than 1e-19 to their origin count as unchanged: their squares are zero.
    """
    info = file.tensors[name]
    wide = torch.promote_types(info.dtype, torch.float32)
    row_bytes = info.size_bytes // max(1, (*info.shape, 1)[0])
    total = 0.0
    for rows in row_blocks(info.shape, row_bytes, _BLOCK_BYTES):
        value = file.read_rows(name, rows.start, rows.stop)
        change = value.to(wide)
        if origin is not None:
            change = change - origin.read_rows(name, rows.start, rows.stop)
        flat = change.reshape(-1)
        square = float(torch.dot(flat, flat))
        if not math.isfinite(square):  # nan and inf show in a sum; so do values that are only large
            _check_finite(name, value)
            square = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
        total += square
    return total


def _check_names(found: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - found):
        raise UpdateRefusedError("missing", f"tensor {missing[0]!r} is missing")
    if extra := sorted(found - expected):
        name = extra[0][: limits.NAME_CHARACTERS]
        raise UpdateRefusedError("extra", f"tensor {name!r} is not in this model")


def _check_whole(name: str, value: Tensor, start: Tensor, samples: int) -> None:
    """Integers count or index: the largest is merged, and a wrong index fails in every model."""
    if torch.equal(value, start):
        return
    if value.numel() == 1 and value.dtype != torch.bool:
        begun, found = int(start), int(value)
        if min(0, begun) <= found <= begun + samples:
            return
        raise UpdateRefusedError(
            "integers", f"tensor {name!r} went from {begun} to {found} in {samples} samples"
        )
    raise UpdateRefusedError(
        "integers", f"tensor {name!r} is a table of {value.dtype} that training must not change"
    )


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = torch.aminmax(tensor)  # one pass; nan and inf both show in it
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise UpdateRefusedError("not_finite", f"tensor {name!r} holds nan or infinity")
    largest = max(-float(low), float(high))
    # Beyond this the difference of two updates, which every merge takes, may be infinite.
    if largest > torch.finfo(torch.promote_types(tensor.dtype, torch.float32)).max / 2:
        raise UpdateRefusedError(
            "not_finite", f"tensor {name!r} holds {largest:.3g}, which is too large to be merged"
        )
