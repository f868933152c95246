"""A session of secure aggregation without a network: real members, and messages carried by hand."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from partsum.node import control
from partsum.node.secrets import SecretsFile
from partsum.node.secure import SecureMember
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire_secure
from partsum.shared.secure import Ask, Roster, SecureOpen, Shares

SESSION = "ab" * 16


def member(folder: Path, name: str, seed: int) -> SecureMember:
    """A member whose secrets lie in the folder; guessable, for it is a test."""
    return SecureMember(
        SecretsFile(folder / f"{name}.json"), name, random.Random(f"{seed}{name}").randbytes
    )


def say(member: SecureMember, message: control.Secure) -> pb.ControlRequest:
    """What a member answers, if it must answer."""
    answer = member.answer(message)
    assert answer is not None
    return answer


class Agreed:
    """Members "a", "b", ... that have agreed on masks."""

    def __init__(self, folder: Path, count: int, threshold: int, seed: int = 1) -> None:
        names = [chr(ord("a") + k) for k in range(count)]
        self.members = [member(folder, name, seed) for name in names]
        keys = [say(m, SecureOpen(SESSION)).secure_keys for m in self.members]
        self.roster = Roster(
            SESSION, threshold, tuple(names), tuple(wire_secure.keys_from_wire(k) for k in keys)
        )
        self.sealed = [
            wire_secure.shares_from_wire(say(m, self.roster).secure_shares) for m in self.members
        ]
        for number, m in enumerate(self.members):
            assert m.answer(self.routed(number)) is None

    def routed(self, number: int) -> Shares:
        """What the others sealed for a member."""
        others = {k: s.shares for k, s in enumerate(self.sealed) if k != number}
        return Shares(SESSION, {k: shares[number] for k, shares in others.items()})

    def opened(
        self, survivors: Sequence[int], answering: Sequence[int]
    ) -> dict[int, Mapping[int, bytes]]:
        """What these members open for these survivors."""
        ask = Ask(SESSION, tuple(survivors))
        return {
            k: wire_secure.shares_from_wire(say(self.members[k], ask).secure_reveal).shares
            for k in answering
        }
