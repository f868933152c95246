"""Masks that cancel in the sum: what a node adds to its update, and what takes it off again.

Practical Secure Aggregation, Bonawitz et al. 2017 (10.1145/3133956.3133982). Updates are integers
modulo 2^64; each pair of nodes shares a mask that one adds and the other takes away, and each node
adds a mask of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from partsum.shared.errors import PartsumError, WireError
from partsum.shared.secure import KEY_BYTES

FRACTION_BITS = 40
LARGEST = 2.0**22
"""The largest value that can be masked; the smallest step is 2^-40. Shares add up to 1 at most, so
a sum stays under 2^62, whatever the number of nodes."""

_PIECE_WORDS = 1 << 17  # 1 MiB: masks take no more memory, and stay in the processor's cache

Words = NDArray[np.uint64]
Mask = tuple[bytes, int]
"""A mask's key, and whether it is added (1) or taken away (-1)."""


def public_key(private: bytes) -> bytes:
    """The X25519 public key that belongs to 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared_key(private: bytes, public: bytes, purpose: str) -> bytes:
    """A key that only the owners of the two private keys can make, another for each purpose.

    Raises WireError where ``public`` is not a key.
    """
    try:
        own = X25519PrivateKey.from_private_bytes(private)
        secret = own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise WireError(f"a public key for secure aggregation is not one: {error}") from error
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(secret)


def check_key(public: bytes) -> None:
    """Raise WireError where no secret can be agreed on with this key, by whomever."""
    shared_key(bytes(KEY_BYTES), public, "partsum check")


def pair_purpose(session: str) -> str:
    """What the key is for whose mask two nodes share in a session."""
    return f"partsum pair mask {session}"


def sign(member: int, other: int) -> int:
    """How a member applies the mask that it shares with another: one adds, one takes away."""
    return 1 if member < other else -1


def mask_words(key: bytes, tensor: int, count: int, first: int = 0) -> Words:
    """``count`` words of one tensor's mask, from an even ``first`` on: AES-256-CTR's key stream.

    ``tensor`` is its number in the file. Any piece can be made without what lies before it; each
    key masks one file only.
    """
    assert first % 2 == 0, "a block of AES is two words"
    start = tensor.to_bytes(8, "big") + (first // 2).to_bytes(8, "big")
    encryptor = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), dtype="<u8")


def apply_masks(words: Words, masks: Sequence[Mask], tensor: int) -> Words:
    """The words with all masks of this tensor added or taken away, modulo 2^64."""
    masked = words.copy()
    for first in range(0, len(words), _PIECE_WORDS):
        piece = masked[first : first + _PIECE_WORDS]
        for key, direction in masks:
            mask = mask_words(key, tensor, len(piece), first)
            if direction > 0:
                piece += mask
            else:
                piece -= mask
    return masked


def to_words(values: NDArray[np.float64], share: float) -> Words:
    """``share`` times the values in fixed point. Raises PartsumError where one does not fit."""
    if values.size and not np.abs(values).max() <= LARGEST:  # a nan does not fit either
        raise PartsumError(
            f"it holds a value of {np.abs(values).max():g}, and secure aggregation carries at most "
            f"{LARGEST:.0f}"
        )
    return np.rint(values * (share * 2.0**FRACTION_BITS)).astype(np.int64).view(np.uint64)


def from_words(words: Words, share: float) -> NDArray[np.float64]:
    """A sum of words back into values; ``share`` is the sum of the shares in it."""
    return words.view(np.int64) / (share * 2.0**FRACTION_BITS)
