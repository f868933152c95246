"""The register of who may come in: names, roles, and the digests of what they show.

Holds no secret: of a token it knows the SHA-256 only, of a certificate the fingerprint.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import ConfigDict, TypeAdapter

from partsum.shared.credentials import Role
from partsum.shared.errors import ConfigError, RefusedError, StateError

Kind = Literal["certificate", "token"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def token_digest(token: str) -> str:
    """What the register knows of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def certificate_digest(pem: str) -> str:
    """What the register knows of a certificate: the SHA-256 of its DER form."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def check_name(name: str) -> None:
    """Whether somebody may be called that. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the name {name!r} may hold letters, digits, '_', '.' and '-' only, 64 at most, and "
            "begins with a letter or digit"
        )


@dataclass(frozen=True)
class Key:
    """Something that a member can show; times are Unix seconds."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    kind: Kind
    digest: str
    issued: float
    expires: float
    revoked: bool = False

    def holds(self, now: float) -> bool:
        """Whether it lets its member in."""
        return not self.revoked and now < self.expires


@dataclass(frozen=True)
class Member:
    """A node or an operator, and all that it was ever given."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    name: str
    role: Role
    keys: tuple[Key, ...] = ()

    def newest(self, kind: Kind) -> Key | None:
        """The key of that kind that was given last."""
        keys = [key for key in self.keys if key.kind == kind]
        return keys[-1] if keys else None

    def holds(self, kind: Kind, now: float) -> bool:
        """Whether any key of that kind lets it in."""
        return any(key.kind == kind and key.holds(now) for key in self.keys)


_FILE = TypeAdapter(dict[str, list[Member]])


class Members:
    """All members, by name."""

    def __init__(self, members: dict[str, Member] | None = None) -> None:
        self._members = dict(members or {})

    def __iter__(self) -> Iterator[Member]:
        return iter(sorted(self._members.values(), key=lambda member: member.name))

    def get(self, name: str) -> Member | None:
        """The member of that name."""
        return self._members.get(name)

    def find(self, kind: Kind, digest: str, now: float) -> tuple[Member, Key]:
        """Whose key this is, and what the register knows of it.

        Compared in constant time with every key (some 0.2 ms for 1000 members).

        Raises:
            RefusedError: nobody's, or no longer valid; the sentence names no secret.
        """
        found: tuple[Member, Key] | None = None
        for member in self._members.values():
            for key in member.keys:
                if key.kind == kind and hmac.compare_digest(key.digest, digest):
                    found = member, key
        if found is None:
            raise RefusedError(
                f"this {kind} is not in the coordinator's register; `partsum {_group(kind)}` on "
                "its host makes one that is"
            )
        member, key = found
        whose = f"the {kind} of {member.role} {member.name}"
        if key.revoked:
            raise RefusedError(f"{whose} was revoked")
        if not key.holds(now):
            raise RefusedError(f"{whose} has expired; ask for another")
        return found

    def give(self, name: str, role: Role, key: Key) -> None:
        """A first key for somebody. Raises ConfigError where the name is taken or no name."""
        check_name(name)
        member = self._members.get(name) or Member(name, role)
        if member.role != role:
            raise ConfigError(f"{name} is a {member.role} here already; take another name")
        if member.holds(key.kind, key.issued):
            raise ConfigError(
                f"{role} {name} has a {key.kind} already; to give it another: "
                f"partsum {_command(key.kind)} {name}"
            )
        self._members[name] = replace(member, keys=(*member.keys, key))

    def role_of(self, name: str, kind: Kind) -> Role:
        """The role of a member that has, or had, a key of that kind. Raises ConfigError."""
        return self._known(name, kind).role

    def rotate(self, name: str, key: Key, grace_seconds: float) -> None:
        """A new key for a member; its old ones hold for ``grace_seconds`` more."""
        member = self._known(name, key.kind)
        end = key.issued + grace_seconds
        old = tuple(
            replace(k, expires=min(k.expires, end)) if k.kind == key.kind else k
            for k in member.keys
            if k.expires > key.issued
        )
        self._members[name] = replace(member, keys=(*old, key))

    def revoke(self, name: str, kind: Kind) -> None:
        """None of its keys of that kind lets it in any more."""
        member = self._known(name, kind)
        keys = tuple(replace(k, revoked=True) if k.kind == kind else k for k in member.keys)
        self._members[name] = replace(member, keys=keys)

    def _known(self, name: str, kind: Kind) -> Member:
        member = self._members.get(name)
        if member is None or member.newest(kind) is None:
            raise ConfigError(
                f"nobody named {name!r} has a {kind} here; see `partsum {_group(kind)} list`"
            )
        return member

    def text(self) -> str:
        """The register's file."""
        return json.dumps({"members": [asdict(member) for member in self]}, indent=1) + "\n"


def parse_members(text: str) -> Members:
    """The register out of its file. Raises StateError."""
    try:
        members = _FILE.validate_json(text)["members"]
    except (ValueError, KeyError) as error:
        words = " ".join(str(error).split())
        raise StateError(f"the register of members is damaged: {words}") from error
    return Members({member.name: member for member in members})


def _group(kind: Kind) -> str:
    return "certs" if kind == "certificate" else "tokens"


def _command(kind: Kind) -> str:
    return "certs renew" if kind == "certificate" else "tokens rotate"
