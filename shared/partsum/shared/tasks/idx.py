"""Image sets in IDX form, as MNIST and Fashion-MNIST come: gzipped or plain."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from partsum.shared.errors import DataError

_UINT8 = 0x08  # the only element type of these sets
_MOST_DEFLATE_SAVES = 1032  # to one; a property of the format


def find_idx(folder: Path, name: str) -> Path:
    """The file ``name`` or ``name``.gz in the folder.

    Raises:
        FileNotFoundError: neither is there; says how to get them.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no {name} (or {name}.gz) in {folder}. On Debian: apt install dataset-fashion-mnist; "
        "or put MNIST's or Fashion-MNIST's four files into a folder and name it in the task's "
        "option folder"
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The file's array, uint8, of so many dimensions.

    Raises:
        DataError: the header is not of such an array, or the data is not as long as it says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return _read(file, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}. Get the file again") from error


def _read(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int) -> np.ndarray:
    header = file.read(4 + 4 * dimensions)
    magic = bytes([0, 0, _UINT8, dimensions])
    if header[:4] != magic or len(header) < 4 + 4 * dimensions:
        raise DataError(
            f"{path} is not an IDX file of bytes in {dimensions} dimensions: it begins with "
            f"{header[:4].hex(' ') or 'nothing'}, not {magic.hex(' ')}"
        )
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
    size = math.prod(shape)
    # A size from a damaged header must not decide how much memory is taken.
    limit = os.path.getsize(path) * (_MOST_DEFLATE_SAVES if path.suffix == ".gz" else 1)
    data = file.read(min(size, limit) + 1)
    if len(data) != size:
        held = "more" if len(data) > size else f"{len(data)}"
        raise DataError(
            f"{path} says that it holds {' x '.join(map(str, shape))} = {size} B, but it holds "
            f"{held}. Get the file again"
        )
    return np.frombuffer(bytearray(data), np.uint8).reshape(shape)
