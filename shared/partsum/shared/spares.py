"""Files that nobody needs any more, kept to be written over."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

SPARE = "spare-"
_LEAST_BYTES = 1 << 20  # writing a small file anew costs nothing


class Spares:
    """Large files waiting in a folder for new contents.

    Writing over a file takes a fraction of what a new one takes: its blocks are on disk and its
    pages in memory already (measured on a virtual machine, which gives free pages back to its
    host: 0.08 s a GB against 0.25-1.5 s). Whoever still reads a file that is kept here may find
    other bytes in it.

    Args:
        folder: where they lie; other files may lie there too.
        limit: how many are kept; beyond, files are removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def keep(self, path: Path) -> None:
        """The file is not needed any more. One that has another name too only loses this one."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return
        large = found.st_size >= _LEAST_BYTES and found.st_nlink == 1
        if large and len(self._found()) < self._limit:
            with contextlib.suppress(OSError):  # it lies on another disk, or has gone
                os.replace(path, self._folder / f"{SPARE}{uuid.uuid4().hex}")
        path.unlink(missing_ok=True)

    def take(self, path: Path, size_bytes: int) -> None:
        """Put a file there to be written over, the nearest in size, if there is one.

        Its contents and its size are anything.
        """
        if size_bytes < _LEAST_BYTES:
            return
        sizes = {}
        for spare in self._found():
            with contextlib.suppress(FileNotFoundError):  # another thread has taken it
                sizes[spare] = abs(spare.stat().st_size - size_bytes)
        for spare in sorted(sizes, key=lambda spare: sizes[spare]):
            with contextlib.suppress(OSError):  # nor may it lie on another disk
                os.replace(spare, path)
                return

    def clear(self) -> None:
        """Remove them all."""
        for spare in self._found():
            spare.unlink(missing_ok=True)

    def _found(self) -> list[Path]:
        return list(self._folder.glob(f"{SPARE}*"))
