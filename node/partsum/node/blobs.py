"""Blobs on the node's disk: files named by their digest, the least recently used leaving first."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from partsum.shared.errors import PartsumError
from partsum.shared.messages import Blob

log = logging.getLogger(__name__)

_DIGEST_LENGTH = 32
_OPTIMIZER = ".optimizer"


class BlobCache:
    """A folder of blobs. What has its final name is whole: files come by rename only.

    Beside the blob of an update may lie its companion, the optimizer state that belongs to those
    weights; the two come and go together. Digests must have been checked by `wire` before they
    come here, since they become file names. One process at a time may own the folder.

    Args:
        folder: made if it does not exist; leftovers of a killed process are removed.
        limit_bytes: blobs beyond this leave, the least recently used first, but never one that
            is held.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._held: frozenset[str] = frozenset()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # digest -> bytes, oldest use first
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_stock()
        except OSError as error:
            raise PartsumError(
                f"cannot use the blob folder {folder}: {error.strerror or error}. "
                "Choose another one with --state-dir"
            ) from error

    def _take_stock(self) -> None:
        """Find the blobs of an earlier life, oldest first, and remove all else."""
        files = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        blobs = [file.name for file in files if len(file.name) == _DIGEST_LENGTH]
        companions = {f"{name}{_OPTIMIZER}" for name in blobs}
        for file in files:
            if file.name not in companions and len(file.name) != _DIGEST_LENGTH:
                file.unlink()
        self._sizes.update((name, self._size_on_disk(name)) for name in blobs)

    def _size_on_disk(self, digest: str) -> int:
        companion = self.companion(digest)
        size = (self.folder / digest).stat().st_size
        return size + (companion.stat().st_size if companion else 0)

    @property
    def size_bytes(self) -> int:
        """What all blobs and companions take on disk."""
        return sum(self._sizes.values())

    def path(self, blob: Blob) -> Path | None:
        """Where the blob lies, or None if it is not here; counts as a use of it."""
        if blob.digest not in self._sizes:
            return None
        path = self.folder / blob.digest
        if not path.exists() or path.stat().st_size != blob.size_bytes:
            self._remove(blob.digest)  # cut short by a power failure, or removed by hand
            return None
        self._sizes.move_to_end(blob.digest)
        os.utime(path)
        return path

    def companion(self, digest: str) -> Path | None:
        """Where the optimizer state of these weights lies, or None."""
        path = self.folder / f"{digest}{_OPTIMIZER}"
        return path if path.exists() else None

    def partial(self, blob: Blob) -> Path:
        """Where the blob's bytes are gathered until they are whole."""
        return self.folder / f"{blob.digest}.partial"

    def add(self, file: Path, digest: str, companion: Path | None = None) -> Path:
        """Take a whole file in under its digest; returns where it lies now.

        The file and its companion must be on the same file system; their old names are gone once
        this returns. Others may leave to make room.
        """
        if companion is not None:
            os.replace(companion, self.folder / f"{digest}{_OPTIMIZER}")
        path = self.folder / digest
        if file != path:
            os.replace(file, path)
        self._sizes[digest] = self._size_on_disk(digest)
        self._sizes.move_to_end(digest)
        self._make_room(newest=digest)
        return path

    def sweep(self, output: Path) -> None:
        """Remove what a dead worker left of a file that it was writing here."""
        for file in self.folder.glob(f"*{output.name}*"):
            file.unlink()

    def hold(self, blobs: Iterable[Blob]) -> None:
        """These blobs are in use from now on, and no others."""
        self._held = frozenset(blob.digest for blob in blobs)
        self._make_room()

    def _make_room(self, newest: str = "") -> None:
        excess = self.size_bytes - self._limit_bytes
        for digest in list(self._sizes):
            if excess <= 0:
                return
            if digest not in self._held and digest != newest:
                excess -= self._sizes[digest]
                self._remove(digest)

    def _remove(self, digest: str) -> None:
        size = self._sizes.pop(digest)
        (self.folder / digest).unlink(missing_ok=True)
        (self.folder / f"{digest}{_OPTIMIZER}").unlink(missing_ok=True)
        log.debug("blob %s left the cache (%d B)", digest, size)
