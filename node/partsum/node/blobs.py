"""Blobs on the node's disk: files named by their digest, the least recently used leaving first."""

from __future__ import annotations

import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from partsum.node.backoff import DiskFullError
from partsum.shared.errors import PartsumError
from partsum.shared.files import file_digest
from partsum.shared.messages import Blob
from partsum.shared.partial import held_bytes
from partsum.shared.spares import Spares

log = logging.getLogger(__name__)

_DIGEST_LENGTH = 32
_OPTIMIZER, _RESIDUAL = ".optimizer", ".residual"
_SPARES = 4  # beyond the limit of the cache: the next blobs and updates go into them
_MOST_BLOBS = 256  # small ones would pile up in thousands of rounds, here and in memory


class BlobCache:
    """A folder of blobs. What has its final name is whole: files come by rename only.

    Beside the blob of an update may lie its companions: the optimizer state that belongs to those
    weights, and what their encoding lost. They come and go together. Digests must have been
    checked by `wire` before they come here, since they become file names. One process at a time may
    own the folder. A blob of an earlier life is digested before it is used: a power cut may have
    left it without its bytes.

    Args:
        folder: made if it does not exist; leftovers of a killed process are removed.
        limit_bytes: blobs beyond this, or beyond a few hundred, leave: the least recently used
            first, those that are treasured last of all, and never one that is held.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.spares = Spares(folder, _SPARES)
        self._limit_bytes = limit_bytes
        self._held: frozenset[str] = frozenset()
        self._treasured: frozenset[str] = frozenset()
        self._whole: set[str] = set()  # digested, or added, in this life
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
        companions = {f"{name}{kind}" for name in blobs for kind in (_OPTIMIZER, _RESIDUAL)}
        for file in files:
            if file.name not in companions and len(file.name) != _DIGEST_LENGTH:
                file.unlink()
        self._sizes.update((name, self._size_on_disk(name)) for name in blobs)

    def _size_on_disk(self, digest: str) -> int:
        files = (self.folder / digest, self.companion(digest), self.residual(digest))
        return sum(file.stat().st_size for file in files if file)

    @property
    def size_bytes(self) -> int:
        """What all blobs and companions take on disk."""
        return sum(self._sizes.values())

    def path(self, blob: Blob) -> Path | None:
        """Where the blob lies, or None if it is not here; counts as a use of it."""
        if blob.digest not in self._sizes:
            return None
        path = self.folder / blob.digest
        if not self._is_whole(path, blob):
            log.warning("blob %s is damaged or gone: left out", path)
            self._remove(blob.digest)
            return None
        self._sizes.move_to_end(blob.digest)
        os.utime(path)
        return path

    def _is_whole(self, path: Path, blob: Blob) -> bool:
        if not path.exists() or path.stat().st_size != blob.size_bytes:
            return False
        if blob.digest not in self._whole and file_digest(path) == blob.digest:
            self._whole.add(blob.digest)
        return blob.digest in self._whole

    def companion(self, digest: str) -> Path | None:
        """Where the optimizer state of these weights lies, or None."""
        return self._beside(digest, _OPTIMIZER)

    def residual(self, digest: str) -> Path | None:
        """Where what the encoding of these weights lost lies, or None."""
        return self._beside(digest, _RESIDUAL)

    def _beside(self, digest: str, kind: str) -> Path | None:
        path = self.folder / f"{digest}{kind}"
        return path if path.exists() else None

    def partial(self, blob: Blob) -> Path:
        """Where the blob's bytes are gathered until they are whole.

        Raises DiskFullError where there is no room for them.
        """
        path = self.folder / f"{blob.digest}.partial"
        held = held_bytes(path, blob.size_bytes)
        free = shutil.disk_usage(self.folder).free
        if blob.size_bytes - held > free:
            raise DiskFullError(
                f"a blob of {blob.size_bytes} B does not fit into {self.folder}, where {free} B "
                "are free. Make room there, or choose another disk with --state-dir"
            )
        return path

    def add(
        self, file: Path, digest: str, companion: Path | None = None, residual: Path | None = None
    ) -> Path:
        """Take a whole file in under its digest; returns where it lies now.

        The file and its companions must be on the same file system; their old names are gone once
        this returns. Others may leave to make room.
        """
        for beside, kind in ((companion, _OPTIMIZER), (residual, _RESIDUAL)):
            if beside is not None:
                os.replace(beside, self.folder / f"{digest}{kind}")
        path = self.folder / digest
        if file != path:
            os.replace(file, path)
        self._sizes[digest] = self._size_on_disk(digest)
        self._whole.add(digest)
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

    def treasure(self, blobs: Iterable[Blob]) -> None:
        """These blobs, from now on, are worth more than others: nobody else has their companions.

        They leave only where there is nothing else to remove.
        """
        self._treasured = frozenset(blob.digest for blob in blobs)

    def _make_room(self, newest: str = "") -> None:
        excess = self.size_bytes - self._limit_bytes
        free = [d for d in self._sizes if d not in self._held and d != newest]
        for digest in sorted(free, key=lambda d: d in self._treasured):  # stable: oldest use first
            if excess <= 0 and len(self._sizes) <= _MOST_BLOBS:
                return
            excess -= self._sizes[digest]
            self._remove(digest)

    def _remove(self, digest: str) -> None:
        size = self._sizes.pop(digest)
        self._whole.discard(digest)
        for kind in ("", _OPTIMIZER, _RESIDUAL):
            self.spares.keep(self.folder / f"{digest}{kind}")
        log.debug("blob %s left the cache (%d B)", digest, size)
