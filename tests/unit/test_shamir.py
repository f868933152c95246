"""Shares of a secret: enough give it back, fewer are of no use."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partsum.shared.shamir import PRIME, SECRET_BYTES, SHARE_BYTES, join, split

# Not st.randoms: it draws zeros too, and a polynomial of zeros hides nothing.
RNGS = st.integers(0, 2**32).map(random.Random)
SECRETS = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


@given(SECRETS, st.integers(1, 8), st.integers(0, 4), RNGS)
def test_any_members_that_are_enough_find_the_secret(
    secret: bytes, threshold: int, more: int, rng: random.Random
) -> None:
    members = threshold + more
    shares = split(secret, threshold, members, rng.randbytes)
    assert {len(share) for share in shares} == {SHARE_BYTES}
    chosen = rng.sample(range(members), rng.randint(threshold, members))
    assert join({member: shares[member] for member in chosen}) == secret


@given(SECRETS, st.integers(2, 8), RNGS)
def test_one_member_too_few_find_nothing(secret: bytes, threshold: int, rng: random.Random) -> None:
    shares = split(secret, threshold, threshold + 1, rng.randbytes)
    few = {member: shares[member] for member in rng.sample(range(threshold + 1), threshold - 1)}
    with pytest.raises(ValueError, match="do not make up a secret"):
        join(few)


@given(SECRETS, SECRETS, RNGS)
def test_too_few_shares_fit_any_other_secret_as_well(
    secret: bytes, other: bytes, rng: random.Random
) -> None:
    """With one share too few, some last share leads to each secret there is."""
    shares = split(secret, 3, 3, rng.randbytes)
    # The third share that would make the first two shares of `secret` into shares of `other`: at 0
    # the line through the three has the weights 3, -3 and 1.
    first, second = (int.from_bytes(share, "big") for share in shares[:2])
    third = (int.from_bytes(other, "big") - 3 * first + 3 * second) % PRIME
    assert join({0: shares[0], 1: shares[1], 2: third.to_bytes(SHARE_BYTES, "big")}) == other


def test_damaged_shares_are_noticed() -> None:
    shares = split(bytes(32), 2, 3, random.Random(1).randbytes)
    damaged = bytes([shares[0][0]]) + bytes([shares[0][1] ^ 1]) + shares[0][2:]
    with pytest.raises(ValueError, match="2 members"):
        join({0: damaged, 1: shares[1]})
