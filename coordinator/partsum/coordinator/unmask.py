"""What is left of the masks on a sum of updates, and the mean without them. No socket, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from partsum.coordinator.contribution import rows_of
from partsum.shared.errors import PartsumError
from partsum.shared.masks import (
    LARGEST,
    Mask,
    apply_masks,
    from_words,
    pair_purpose,
    public_key,
    shared_key,
    sign,
)
from partsum.shared.secure import Masking, Roster
from partsum.shared.shamir import join
from partsum.shared.tensors import TensorFile


class LapsedError(PartsumError):
    """A session came to nothing: the round must be opened again."""


class MaskError(LapsedError):
    """What the members of a session sent does not fit together."""


def threshold(members: int, quorum: int) -> int:
    """How many of a session's members must open their shares, and so must survive.

    Two thirds: a third of the nodes may drop out, and less than a third that work with the
    coordinator find out nothing, even if it tells each half of the others another tale.
    """
    return max(quorum, -(-2 * members // 3))


def shares_of(weights: Sequence[int], session: str) -> dict[int, Masking]:
    """By part, how its update is to be masked: its share of the mean, if all were there."""
    total = sum(weights)
    return {k: Masking(session, weight / total) for k, weight in enumerate(weights)}


def masks_on_sum(
    roster: Roster, survivors: Sequence[int], opened: Mapping[int, Mapping[int, bytes]]
) -> list[Mask]:
    """The masks that do not cancel in the sum of these survivors' updates.

    Each survivor's own, and what the survivors put on for those who are not among them.

    Args:
        roster: the session's.
        survivors: numbers of the members whose updates are in the sum.
        opened: by who sent them, the shares that it opened, by whose secret they are of.

    Raises:
        MaskError: the shares do not make up the secrets.
    """
    masks: list[Mask] = []
    for member, keys in enumerate(roster.keys):
        shares = {sender: theirs[member] for sender, theirs in opened.items() if member in theirs}
        secret = _joined(roster, member, shares)
        if member in survivors:
            masks.append((secret, 1))
            continue
        if public_key(secret) != keys.mask:
            raise MaskError(f"the shares of {roster.names[member]}'s key make up another key")
        purpose = pair_purpose(roster.session)
        masks += [
            (shared_key(secret, roster.keys[other].mask, purpose), sign(other, member))
            for other in survivors
        ]
    return masks


def _joined(roster: Roster, member: int, shares: Mapping[int, bytes]) -> bytes:
    name, enough = roster.names[member], roster.threshold
    if len(shares) < enough:
        raise MaskError(f"only {len(shares)} of {enough} shares of {name}'s secret were opened")
    try:
        return join({sender: shares[sender] for sender in sorted(shares)[:enough]})
    except ValueError as error:
        raise MaskError(f"the shares of {name}'s secret do not fit: {error}") from error


class UnmaskedMean:
    """The weighted mean of masked updates, read like a file; no single update is ever seen.

    Args:
        files: the masked updates.
        masks: all that `masks_on_sum` found.
        share: the sum of these updates' shares.
        like: a base: which dtypes its tensors have.
    """

    def __init__(
        self, files: Sequence[TensorFile], masks: Sequence[Mask], share: float, like: TensorFile
    ) -> None:
        self._files = files
        self._off = [(key, -direction) for key, direction in masks]
        self._share = share
        self._dtypes = {name: info.dtype for name, info in like.tensors.items()}
        self._numbers = {name: number for number, name in enumerate(sorted(like.tensors))}
        self._last = ("", torch.empty(0))

    def read(self, name: str) -> Tensor:
        """The mean of that tensor. Memory is a few times the tensor's, whatever their number.

        Raises MaskError where what comes out is no mean: a mask was still on it.
        """
        shape = self._files[0].tensors[name].shape
        words = np.zeros(int(np.prod(shape)), dtype=np.uint64)
        for file in self._files:
            words += file.read(name).reshape(-1).numpy().view(np.uint64)
        values = from_words(apply_masks(words, self._off, self._numbers[name]), self._share)
        if values.size and not np.abs(values).max() <= LARGEST:
            raise MaskError(
                f"the sum of tensor {name!r} makes no sense: some node's masks or shares are wrong"
            )
        mean, dtype = torch.from_numpy(values).view(shape), self._dtypes[name]
        return (mean if dtype.is_floating_point else mean.round()).to(dtype)

    def read_rows(self, name: str, first: int, last: int, lead: int = 1) -> Tensor:
        """Rows of the mean; the tensor that was asked for last is kept, for its other rows."""
        if self._last[0] != name:
            self._last = (name, self.read(name))
        return rows_of(self._last[1], lead)[first:last]
