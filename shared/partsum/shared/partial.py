"""A file that is gathered piece by piece, and goes on after a break."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import xxhash

from partsum.shared.errors import WireError
from partsum.shared.files import file_digest, is_at
from partsum.shared.spares import Spares

_COUNT_BYTES = 8


class Partial:
    """Bytes that come in order, on their way to being a whole file.

    The file has its final size from the beginning, and at its end, until it is whole, a count of
    the bytes that have come: so it may be one that is written over. What has come survives the end
    of this process, not a power cut; the digest tells.

    A thread may still call its methods after its end; then nothing is written any more.

    Args:
        path: goes on where an earlier one of that path ended.
        size_bytes: of the whole.
        spares: where a file to write over may come from.
    """

    def __init__(self, path: Path, size_bytes: int, spares: Spares) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.held = held_bytes(path, size_bytes)
        if not self.held:
            _begin(path, size_bytes, spares)
        self._file = os.open(path, os.O_RDWR)
        self._using = threading.Lock()  # a cancelled stream ends while a thread works for it
        self._ended = False
        self._digest = xxhash.xxh3_128()
        self._digested = 0

    def append(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            WireError: there are more than announced, or another writer is at work here.
            OSError: the disk is full.
        """
        if self.held + len(data) > self.size_bytes:
            raise WireError(f"more than the announced {self.size_bytes} B came")
        with self._alone():
            if _count(self._file, self.size_bytes) != self.held:
                raise _not_alone()
            self._write(data, self.held)
            if self._digested == self.held:
                self._digest.update(data)
                self._digested += len(data)
            self.held += len(data)
            self._write(self.held.to_bytes(_COUNT_BYTES, "little"), self.size_bytes)

    def finish(self) -> str:
        """All has come: the file is whole; returns its digest. Raises WireError where it is not."""
        if self.held < self.size_bytes:
            raise WireError(f"the stream ended after {self.held} of {self.size_bytes} B")
        with self._alone():
            os.ftruncate(self._file, self.size_bytes)
        return self._digest.hexdigest() if self.is_digested else file_digest(self.path)

    @property
    def is_digested(self) -> bool:
        """Whether `finish` knows the digest; else it reads the file again."""
        return self._digested == self.held

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Around every write: the file is open, and still the one of its name.

        Else it is nobody's by now, or something else; and its number may be another file's.
        """
        with self._using:
            if self._ended or not is_at(self.path, self._file):
                raise _not_alone()
            yield

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._using:
            self._ended = True
            os.close(self._file)


def _not_alone() -> WireError:
    """One that was thought broken still lives; nothing may be written twice."""
    return WireError("these bytes come on another stream too; try again")


def held_bytes(path: Path, size_bytes: int) -> int:
    """How many of a partial file's bytes have come; of one that is none: 0."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        return _count(file, size_bytes)
    finally:
        os.close(file)


def _count(file: int, size_bytes: int) -> int:
    size = os.fstat(file).st_size
    if size == size_bytes:
        return size  # whole
    if size != size_bytes + _COUNT_BYTES:
        return 0
    count = int.from_bytes(os.pread(file, _COUNT_BYTES, size_bytes), "little")
    return count if count <= size_bytes else 0


def _begin(path: Path, size_bytes: int, spares: Spares) -> None:
    """Under another name first: a file to write over does not say how many bytes have come."""
    fresh = path.with_name(f".{path.name}")
    spares.take(fresh, size_bytes)
    file = os.open(fresh, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.ftruncate(file, size_bytes + _COUNT_BYTES)
        os.pwrite(file, bytes(_COUNT_BYTES), size_bytes)
    finally:
        os.close(file)
    os.replace(fresh, path)
