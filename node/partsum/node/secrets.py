"""What a node knows in a session of secure aggregation, and the file that outlives the daemon."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from partsum.shared.secure import Roster


@dataclass(frozen=True)
class Secrets:
    """A member's secrets of one session; ``mask`` and ``seal`` are X25519 private keys."""

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    session: str
    mask: bytes
    seal: bytes
    seed: bytes  # the key of this node's own mask
    roster: Roster | None = None
    given: Mapping[int, bytes] = field(default_factory=dict)  # sealed shares, for each other member
    held: Mapping[int, bytes] = field(default_factory=dict)  # each member's two shares, own too
    masked: str = ""  # digest of the update that the masks are for
    survivors: tuple[int, ...] | None = None  # for whom shares were opened


_SECRETS = TypeAdapter(Secrets)


class SecretsFile:
    """One session's secrets, readable by this user alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Secrets | None:
        """The last session's, or None; what cannot be read is nothing."""
        try:
            return _SECRETS.validate_json(self._path.read_bytes())
        except (OSError, ValueError):
            return None

    def write(self, secrets: Secrets) -> None:
        """Once this returns, a daemon that is killed and started again knows them."""
        fresh = self._path.with_name(f".{self._path.name}.new")
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_SECRETS.dump_json(secrets))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._path)

    def remove(self) -> None:
        """There is nothing to know any more."""
        self._path.unlink(missing_ok=True)
