"""Shamir's secret sharing: any ``threshold`` shares give the secret, fewer say nothing of it.

How to share a secret, Shamir 1979 (10.1145/359168.359176): the secret is a polynomial's value at 0,
member i's share its value at i + 1. Over the field of 2^521 - 1, a prime that wants no proof here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

SECRET_BYTES = 32
SHARE_BYTES = 66
PRIME = 2**521 - 1

RandomBytes = Callable[[int], bytes]
"""That many bytes that nobody can guess: os.urandom."""


def split(secret: bytes, threshold: int, members: int, random_bytes: RandomBytes) -> list[bytes]:
    """One share of `SHARE_BYTES` for each member, in order."""
    assert len(secret) == SECRET_BYTES, "a secret is 32 bytes"
    assert 1 <= threshold <= members
    terms = [int.from_bytes(secret, "big")]
    # 128 bits more than the field's: what is left of the bias after the division is 2^-128.
    terms += [int.from_bytes(random_bytes(82), "big") % PRIME for _ in range(threshold - 1)]
    return [_value(terms, member + 1).to_bytes(SHARE_BYTES, "big") for member in range(members)]


def _value(terms: list[int], x: int) -> int:
    value = 0
    for term in reversed(terms):
        value = (value * x + term) % PRIME
    return value


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from the shares of these members, by number.

    Raises ValueError where the shares are too few or do not belong together, as far as it shows:
    what comes out is then almost never 32 bytes long.
    """
    values = [int.from_bytes(share, "big") for share in shares.values()]
    weights = _weights(tuple(shares))
    secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ValueError(f"the shares of {len(shares)} members do not make up a secret")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=4)
def _weights(members: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's: how much each member's share counts in the secret, whatever the secret."""
    weights = []
    for x in (member + 1 for member in members):
        above = below = 1
        for other in (member + 1 for member in members):
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
