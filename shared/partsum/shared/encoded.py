"""Encoded tensors in files: what stands in for an update, or for a start, on its way.

An encoded file holds a change against a start that the other side has, or, against nothing, the
tensors themselves; what is not encoded is itself either way. Its metadata say which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from torch import Tensor

from partsum.shared import limits
from partsum.shared.encoding import Shapes, decode, encode, encoded_shapes, is_encoded
from partsum.shared.errors import PartsumError, WireError
from partsum.shared.messages import Encoding
from partsum.shared.tensors import TensorFile, TensorWriter, header_bytes

Read = Callable[[str], Tensor]
"""A tensor by its name."""


def file_shapes(file: TensorFile) -> Shapes:
    """What a file that is not encoded holds."""
    return {name: (info.dtype, info.shape) for name, info in file.tensors.items()}


def used_encoding(wanted: Encoding, fresh: bool) -> Encoding:
    """The encoding of an update: a fresh part has no start that a change could be against, and its
    whole weights are too coarse in int8 (1/254 of the largest of 256, where a change is small)."""
    return "bfloat16" if wanted == "int8" and fresh else wanted


def write_encoded(
    path: Path,
    shapes: Shapes,
    encoding: Encoding,
    against: str,
    read: Read,
    lost: Path | None = None,
    lost_metadata: Mapping[str, str] | None = None,
) -> str:
    """Write an encoded file, one tensor at a time; returns its digest.

    Args:
        path: the file.
        shapes: of the tensors that it stands for.
        encoding: how matrices are encoded.
        against: the digest of the start that a change is measured from; empty: the tensors.
        read: a tensor as float32: its change, or itself.
        lost: a file to be written beside it, with what encoding took from each matrix.
        lost_metadata: of that file.
    """
    metadata = {"encoding": encoding, "against": against}
    writer = TensorWriter(path, encoded_shapes(shapes, encoding), metadata)
    matrices = {name: shape for name, shape in shapes.items() if is_encoded(*shape)}
    rest = TensorWriter(lost, matrices, lost_metadata) if lost else None
    try:
        for name in writer.order:
            value = read(name)
            if name not in matrices:
                writer.write(name, value)
                continue
            sent = _encoded(name, value, encoding)
            writer.write(name, sent)
            if rest is not None:  # in the same order: both are sorted by name
                rest.write(name, value - decode(sent, shapes[name][1]))
        if rest is not None:
            rest.commit(durable=False)
        return writer.commit(durable=False)
    except BaseException:
        writer.abandon()
        if rest is not None:
            rest.abandon()
        raise


def _encoded(name: str, value: Tensor, encoding: Encoding) -> Tensor:
    try:
        return encode(value, encoding)
    except PartsumError as error:
        raise PartsumError(f"tensor {name!r}: {error}") from error


def check_forms(file: TensorFile, forms: Shapes) -> None:
    """Raise WireError where a file does not hold just these tensors."""
    found = file.tensors
    if missing := sorted(set(forms) - set(found)):
        raise WireError(f"tensor {missing[0]!r} is missing")
    if extra := sorted(set(found) - set(forms)):
        raise WireError(f"tensor {extra[0][: limits.NAME_CHARACTERS]!r} is not in this model")
    for name, (dtype, shape) in forms.items():
        if (found[name].dtype, found[name].shape) != (dtype, shape):
            raise WireError(
                f"tensor {name!r} is {found[name].dtype} of shape {found[name].shape}, "
                f"expected {dtype} of shape {shape}"
            )


class Changes(Protocol):
    """Tensors of these shapes; matrices may be changes since a start."""

    shapes: Shapes

    def read(self, name: str) -> Tensor:
        """The tensor of that name."""
        ...


class Encoded:
    """An encoded file, open for reading the tensors that it stands for, one at a time.

    Raises WireError where it is not what was announced; nothing is read of a tensor before its
    length has been checked.

    Args:
        path: the file.
        shapes: of the tensors that it must stand for.
        encoding: how matrices must be encoded.
        against: the digest of the start that it must be a change against; empty: of none.
    """

    def __init__(self, path: Path, shapes: Shapes, encoding: Encoding, against: str) -> None:
        self.shapes = shapes
        forms = encoded_shapes(shapes, encoding)
        self._file = TensorFile(path, header_bytes(forms))
        try:
            self._check_metadata(encoding, against)
            check_forms(self._file, forms)
        except BaseException:
            self.close()
            raise

    def _check_metadata(self, encoding: Encoding, against: str) -> None:
        for key, wanted in (("encoding", encoding), ("against", against)):
            found = limits.in_words(self._file.metadata.get(key, ""))[: limits.NAME_CHARACTERS]
            if found != wanted:
                raise WireError(f"its {key} is {found!r}, expected {wanted!r}")

    def read(self, name: str) -> Tensor:
        """The tensor, or its change: float32 where it is a matrix."""
        sent = self._file.read(name)
        if not is_encoded(*self.shapes[name]):
            return sent
        try:
            return decode(sent, self.shapes[name][1])
        except WireError as error:
            raise WireError(f"tensor {name!r}: {error}") from error

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def __enter__(self) -> Encoded:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def restore(
    changes: Changes, start: Read | None, out: Path, metadata: Mapping[str, str] | None = None
) -> str:
    """Write the tensors that changes make of a start; returns the digest.

    Without a ``start`` they are the tensors themselves.
    """
    writer = TensorWriter(out, changes.shapes, metadata)
    try:
        for name in writer.order:
            value = changes.read(name)
            if start is not None and is_encoded(*changes.shapes[name]):
                value = start(name).float() + value
            writer.write(name, value)
        return writer.commit(durable=False)
    except BaseException:
        writer.abandon()
        raise
