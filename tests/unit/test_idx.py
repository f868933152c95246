from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from partsum.shared.errors import DataError
from partsum.shared.tasks.idx import find_idx, read_idx


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_an_array_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / name, array)
    np.testing.assert_array_equal(read_idx(tmp_path / name, dimensions=3), array)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "begins with nothing"),
        (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47, not 00 00 08 01"),
        (bytes([0, 0, 8, 1, 0]), "is not an IDX file"),
        (bytes([0, 0, 8, 1]) + struct.pack(">I", 9) + b"12345678", "= 9 B, but it holds 8"),
        (bytes([0, 0, 8, 1]) + struct.pack(">I", 7) + b"12345678", "= 7 B, but it holds more"),
        (bytes([0, 0, 8, 1]) + struct.pack(">I", 2**32 - 1), "4294967295 B, but it holds 0"),
    ],
)
def test_an_idx_file_that_is_not_what_it_says_is_refused(
    tmp_path: Path, data: bytes, complaint: str, end: str
) -> None:
    path = tmp_path / f"labels{end}"
    path.write_bytes(gzip.compress(data) if end else data)
    with pytest.raises(DataError, match=complaint):
        read_idx(path, dimensions=1)


@pytest.mark.parametrize("damage", ["not gzip", "cut short", "flipped"])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "labels.gz"
    write_idx(path, np.random.default_rng(1).integers(0, 256, 5000))
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    bad = {"not gzip": b"hello", "cut short": good[:-40], "flipped": bytes(flipped)}
    path.write_bytes(bad[damage])
    with pytest.raises(DataError, match="Get the file again"):
        read_idx(path, dimensions=1)


def test_a_plain_idx_file_comes_before_a_gzipped_one(tmp_path: Path) -> None:
    for name in ("x.gz", "x"):
        (tmp_path / name).touch()
    assert find_idx(tmp_path, "x") == tmp_path / "x"
