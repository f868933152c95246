"""Files as bytes: read in chunks, digested, made durable. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

CHUNK_BYTES = 1 << 20  # 1-2 MiB moves most bytes a second over gRPC (measured on loopback)


def read_chunks(path: Path, offset: int = 0, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """A file's bytes from ``offset`` on, in chunks."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while chunk := file.read(size):
            yield chunk


def file_digest(path: Path) -> str:
    """The file's xxh3-128 digest, 32 hex digits."""
    digest = xxhash.xxh3_128()
    for chunk in read_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def is_at(path: Path, file: int) -> bool:
    """Whether an open file still has that name: one that has not may be another's by now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def open_to_others(path: Path) -> bool:
    """Whether others on this host can read or change a secret, and chmod would mend it.

    What is mounted read-only (a secret of a container's) is guarded by whoever mounted it.
    """
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return False
    return bool(path.stat().st_mode & 0o077)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file; once this returns it outlives a power cut, until then the old one is."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(data)
        sync_file(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make a file's bytes survive a power cut."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
