"""Gaussian noise that nobody without the key can take off again, and the same after a restart."""

from __future__ import annotations

import hmac
import math

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_BLOCK = 1 << 17  # pairs of numbers that are drawn at once
_FRACTION = 2.0**-53


def derived_key(key: bytes, *context: str) -> bytes:
    """A key of 32 bytes for that context alone: HMAC-SHA256."""
    return hmac.digest(key, "\0".join(context).encode(), "sha256")


def gaussian(key: bytes, count: int) -> Tensor:
    """``count`` standard normal numbers in double precision, from AES-256-CTR's key stream.

    By Box and Muller, from 53 bits each, so none is beyond 8.6. One key gives one stream: never use
    it for two tensors.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    found = []
    for first in range(0, count, 2 * _BLOCK):
        pairs = min(_BLOCK, (count - first + 1) // 2)
        bits = torch.frombuffer(bytearray(stream.update(bytes(16 * pairs))), dtype=torch.int64)
        uniform = ((bits & ((1 << 53) - 1)) + 1).double() * _FRACTION  # in (0, 1]
        radius = (-2 * uniform[:pairs].log()).sqrt()
        angle = 2 * math.pi * uniform[pairs:]
        found += [radius * angle.cos(), radius * angle.sin()]
    return torch.cat(found)[:count] if found else torch.empty(0, dtype=torch.float64)
