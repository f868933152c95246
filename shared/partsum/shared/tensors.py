"""State dicts on disk and on the wire: safetensors files, read and written tensor by tensor.

The safetensors library maps a whole file at once, and pages once touched count as resident; a
coordinator that merges many updates would grow with their number. So big files are read here with
plain reads, one tensor at a time, and written the same way. The files are ordinary safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
import xxhash
from torch import Tensor

from partsum.shared import limits
from partsum.shared.errors import PartsumError, WireError
from partsum.shared.files import sync_folder
from partsum.shared.spares import Spares

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_SYNC_BYTES = 32 << 20
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # from the file's beginning
    size_bytes: int


class TensorFile:
    """A safetensors file, open for reading one tensor at a time.

    Raises WireError where the file is not well formed: nothing of it is believed before its header
    has been checked against its size.

    Args:
        path: the file.
        header_limit_bytes: a longer header is not read; see `header_bytes` for what is expected.
    """

    def __init__(self, path: Path, header_limit_bytes: int = limits.TENSORS_HEADER_BYTES) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self.tensors, self.metadata = _read_header(
                self._file.fileno(), path, header_limit_bytes
            )
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        info = self.tensors[name]
        return self._read(name, info.start, info.shape)

    def read_rows(self, name: str, first: int, last: int, lead: int = 1) -> Tensor:
        """Rows ``first`` to ``last - 1`` of a tensor, in memory of their own.

        Its first ``lead`` dimensions count its rows; a tensor without dimensions has one.
        """
        info = self.tensors[name]
        rows, rest = math.prod(info.shape[:lead]), info.shape[lead:]
        assert 0 <= first <= last <= rows, f"{name!r} has no rows {first} to {last}"
        row = info.size_bytes // max(1, rows)
        return self._read(name, info.start + first * row, (last - first, *rest))

    def _read(self, name: str, start: int, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.empty(shape, dtype=self.tensors[name].dtype)
        view = tensor.view(-1).view(torch.uint8).numpy().data
        while view:
            count = os.preadv(self._file.fileno(), [view], start)
            if count == 0:
                raise WireError(f"{self.path} is cut short inside tensor {name!r}")
            view, start = view[count:], start + count
        return tensor

    def close(self) -> None:
        """Let the file go; tensors already read stay valid."""
        self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _read_header(
    file: int, path: Path, limit_bytes: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    size = os.fstat(file).st_size
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if size < 8 or length > size - 8:
        raise WireError(f"{path} is not a safetensors file: its header does not fit in {size} B")
    if length > limit_bytes:  # a wrong one costs many times its length in memory
        raise WireError(f"{path} has a header of {length} B; at most {limit_bytes} B are read")
    try:
        header = json.loads(os.pread(file, length, 8))
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        found = {name: _info(entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"{path} is not a safetensors file: bad header: {error}") from error
    end = 8 + length
    for name, info in sorted(found.items(), key=lambda item: (item[1].start, item[1].size_bytes)):
        if info.start != end:
            raise WireError(f"{path}: tensor {name!r} does not follow the one before it")
        end += info.size_bytes
    if end != size:
        raise WireError(f"{path} has {size} B, but its header speaks of {end} B")
    return found, metadata


def _info(entry: Mapping[str, object], base: int) -> TensorInfo:
    dtype = DTYPES[str(entry["dtype"])]
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {shape!r}")
    if len(shape) > limits.TENSOR_DIMENSIONS:
        raise ValueError(f"a shape of {len(shape)} dimensions; at most {limits.TENSOR_DIMENSIONS}")
    if math.prod(max(1, n) for n in shape) >= 1 << 60:  # torch overflows, even if it is empty
        raise ValueError(f"shape {shape!r}")
    if not isinstance(offsets, list) or [type(n) for n in offsets] != [int, int]:
        raise ValueError(f"data_offsets {offsets!r}")
    size = offsets[1] - offsets[0]
    if offsets[0] < 0 or size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"data_offsets {offsets!r} do not fit shape {shape!r}")
    return TensorInfo(dtype, tuple(shape), base + offsets[0], size)


def header_bytes(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> int:
    """What the header of a file with these tensors needs at most, with 4 KiB for its metadata."""
    # Six bytes for a letter that JSON escapes; 20 for a number of 64 bits and its comma.
    return 4096 + sum(6 * len(name) + 80 + 20 * (len(s) + 2) for name, (_, s) in shapes.items())


class TensorWriter:
    """Writes a safetensors file tensor by tensor, under a temporary name until `commit`.

    ``shapes`` names all tensors to come; they must be written in `order`. A file of ``spares`` is
    written over, if there is one.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
        spares: Spares | None = None,
    ) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        # Wide dtypes first keeps every tensor aligned; by name within, so same tensors, same bytes.
        self.order = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        offset = 0
        for name in self.order:
            dtype, shape = shapes[name]
            if dtype not in _NAMES:
                raise PartsumError(
                    f"tensor {name!r} is {dtype}, which a safetensors file cannot hold; keep it in "
                    f"the model as one of {', '.join(map(str, _NAMES))}"
                )
            size = math.prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > limits.TENSORS_HEADER_BYTES:
            raise PartsumError(
                f"{len(shapes)} tensors need a header of {len(text)} B in {path.name}, more than "
                f"{limits.TENSORS_HEADER_BYTES} B; the model needs fewer, larger tensors"
            )
        self._shapes = shapes
        self._digest = xxhash.xxh3_128()
        self._written = self._elements = 0  # whole tensors, and of the next one
        self._size = self._synced = 0
        if spares is not None:
            spares.take(self._temporary, offset)
        mode = "r+b" if self._temporary.exists() else "wb"
        self._file = open(self._temporary, mode, buffering=0)  # noqa: SIM115 - closed by commit()
        try:
            self._write(len(text).to_bytes(8, "little") + text)
        except BaseException:
            self.abandon()
            raise

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._size += len(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    def write(self, name: str, tensor: Tensor, durable: bool = False) -> None:
        """The next tensor of `order`; ``durable`` makes `commit` wait for less."""
        assert (tensor.dtype, tuple(tensor.shape)) == self._shapes[name], f"{name} has changed"
        self.write_rows(name, tensor, durable)

    def write_rows(self, name: str, rows: Tensor, durable: bool = False) -> None:
        """The next rows of the next tensor of `order`."""
        assert name == self.order[self._written], f"{name} is out of order"
        dtype, shape = self._shapes[name]
        assert rows.dtype == dtype, f"{name} has changed"
        flat = rows.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            self._write(flat.view(torch.uint8).numpy().data)
        self._elements += flat.numel()
        if self._elements == math.prod(shape):
            self._written, self._elements = self._written + 1, 0
        if durable and self._size - self._synced >= _SYNC_BYTES:
            os.fdatasync(self._file.fileno())
            self._synced = self._size

    def commit(self, durable: bool = True) -> str:
        """Give the file its name, after fsync where ``durable``; returns its digest."""
        assert self._written == len(self.order), "not all tensors were written"
        self._file.truncate(self._size)
        if durable:
            os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        if durable:
            sync_folder(self.path.parent)
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
) -> str:
    """Write a state dict as one safetensors file, atomically; returns its digest.

    Tensors that share storage are written out one by one: a file loads with ``strict=True``.
    """
    shapes = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    writer = TensorWriter(path, shapes, metadata)
    try:
        for name in writer.order:
            writer.write(name, tensors[name])
        return writer.commit(durable)
    except BaseException:
        writer.abandon()
        raise


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A whole state dict, in memory of its own. Raises WireError where the file is damaged."""
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.tensors}
