"""What is said for secure aggregation, as plain frozen values, in the order in which it is said.

coordinator  SecureOpen                a new session
node         PublicKeys
coordinator  Roster                    all members' keys
node         Shares                    of its two secrets, one sealed for each member
coordinator  Shares                    what the others sealed for this member
             (assignment, training, masked update)
coordinator  Ask                       who survived
node         Shares                    opened: what takes the masks off the sum
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KEY_BYTES = 32  # X25519's keys, private and public
LEAST_MEMBERS = 3  # of two, each could take its own update from the sum and read the other's


@dataclass(frozen=True)
class SecureOpen:
    """Make keys for this session."""

    session: str


@dataclass(frozen=True)
class PublicKeys:
    """A member's X25519 public keys of one session, 32 bytes each."""

    mask: bytes  # for the masks that it shares with each other member
    seal: bytes  # for what the coordinator carries between members and must not read


@dataclass(frozen=True)
class Roster:
    """The members of a session; a member's number is its place here."""

    session: str
    threshold: int  # how many members' shares open a secret
    names: tuple[str, ...]
    keys: tuple[PublicKeys, ...]


@dataclass(frozen=True)
class Shares:
    """Sealed or opened shares, by the number of the other member."""

    session: str
    shares: Mapping[int, bytes]


@dataclass(frozen=True)
class Ask:
    """Open your shares: of a survivor's own mask, of any other's key; never both of one member."""

    session: str
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class Masking:
    """How an assignment's update is to be masked: ``share`` is its weight in the mean."""

    session: str
    share: float
