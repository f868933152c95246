"""The access folder: authority, the coordinator's certificate, and the register of members.

The coordinator that serves a run only reads it; `partsum certs` and `partsum tokens` write it, also
while the run goes on.
"""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import grpc

from partsum.coordinator.certs import Signed, expires, make_member
from partsum.coordinator.members import (
    Key,
    Kind,
    Members,
    certificate_digest,
    parse_members,
    token_digest,
)
from partsum.shared.config import ServerConfig
from partsum.shared.credentials import Credentials, Role
from partsum.shared.errors import ConfigError, StateError
from partsum.shared.files import open_to_others, sync_file, sync_folder

_SOON_SECONDS = 30 * 86400.0
_KINDS: dict[str, Kind] = {"tokens": "token", "certificates": "certificate"}


class AccessFolder:
    """A folder that `partsum certs init` made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.operator = path / "operator.toml"  # for `partsum run` on this host
        self._register = path / "members.json"
        self._known: tuple[tuple[int, int, int], Members] | None = None  # the file's, as of then

    # -- reading ----------------------------------------------------------------------------------

    def members(self) -> Members:
        """The register, read anew whenever its file has changed. Raises StateError."""
        try:
            now = self._register.stat()
            seen = now.st_mtime_ns, now.st_size, now.st_ino
            known = self._known  # one value for both: HTTP's threads ask too
            if known is None or seen != known[0]:
                text = self._register.read_text(encoding="utf-8")
                known = self._known = (seen, parse_members(text))
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(self._register, error) from error
        return known[1]

    def pair(self, name: Literal["authority", "server"]) -> Signed:
        """A certificate with its key. Raises StateError."""
        return Signed(self.certificate(name), self._text(f"{name}.key"))

    def certificate(self, name: Literal["authority", "server"]) -> str:
        """A certificate, PEM. Raises StateError."""
        return self._text(f"{name}.crt")

    def has_authority(self) -> bool:
        """Whether it was made already."""
        return (self.path / "authority.crt").exists()

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(self.path / name, error) from error

    def _unreadable(self, path: Path, error: OSError | UnicodeDecodeError) -> StateError:
        why = error.strerror if isinstance(error, OSError) else error
        return StateError(f"cannot read {path}: {why}; {self._remedy()}")

    def _remedy(self) -> str:
        return f"make the access folder with: partsum certs init --folder {self.path}"

    def open_to_others(self) -> list[Path]:
        """Its secrets that others on this host can read or change."""
        secret = [self.path, self.path / "authority.key", self.path / "server.key", self._register]
        return [path for path in secret if path.exists() and open_to_others(path)]

    # -- writing ----------------------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Iterator[Members]:
        """The register, to be changed; written when the block ends well. One at a time."""
        try:
            with open(self.path / "lock", "a", encoding="ascii") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                members = parse_members(self._register.read_text(encoding="utf-8"))
                yield members
                write_secret(self._register, members.text())
        except OSError as error:
            why = f"cannot use {self.path}: {error.strerror}"
            raise StateError(f"{why}; {self._remedy()}") from error

    def keep(self, name: Literal["authority", "server"], signed: Signed) -> None:
        """Store a certificate with its key."""
        write_secret(self.path / f"{name}.key", signed.key)
        write_secret(self.path / f"{name}.crt", signed.certificate)

    def start(self) -> None:
        """Make the folder, and a register where there is none."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {self.path}: {error.strerror}") from error
        if not self._register.exists():
            write_secret(self._register, Members().text())

    def make(
        self, kind: Kind, name: str, role: Role, now: float, days: int, random: bytes
    ) -> tuple[Key, Credentials]:
        """A new key for somebody, and the credentials that go with it; nothing is registered yet.

        A token is made of ``random``, 32 bytes. Raises StateError.
        """
        end = now + days * 86400.0
        authority = self.certificate("authority")
        shown = partial(Credentials, name=name, role=role, expires=_day(end), authority=authority)
        if kind == "token":
            token = "partsum-" + base64.urlsafe_b64encode(random).decode().rstrip("=")
            return Key(kind, token_digest(token), now, end), shown(token=token)
        signed = make_member(self.pair("authority"), name, role, now, days)
        key = Key(kind, certificate_digest(signed.certificate), now, end)
        return key, shown(certificate=signed.certificate, key=signed.key)


def _day(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=0)


class Access:
    """The folder as a serving coordinator uses it: TLS, and whom a key belongs to."""

    def __init__(self, config: ServerConfig, now: float) -> None:
        """Raises StateError, with what to do, where the folder cannot serve this config."""
        self.folder = AccessFolder(Path(config.access).absolute())
        self.kind = _KINDS[config.auth]
        self.folder.members()
        self.expires = expires(self.folder.certificate("server"))
        if self.expires < now:
            raise StateError(
                "the coordinator's certificate has expired; make another with: "
                f"partsum certs init --folder {config.access}"
            )

    def advice(self, config: ServerConfig, now: float) -> list[str]:
        """What should be mended, as sentences."""
        said = [
            f"others on this host can read {path}; do: chmod go= {path}"
            for path in self.folder.open_to_others()
        ]
        if self.expires < now + _SOON_SECONDS:
            days = (self.expires - now) / 86400
            said.append(
                f"the coordinator's certificate expires in {days:.0f} days; `partsum certs init` "
                "makes another"
            )
        members = self.folder.members()
        nodes = {m.name for m in members if m.role == "node" and m.holds(self.kind, now)}
        if not nodes:
            group = "certs" if self.kind == "certificate" else "tokens"
            said.append(f"no node has a valid {self.kind}; make one: partsum {group} node NAME")
        absent = sorted(set(config.allow or ()) - nodes)
        said += [f"server.allow names {name}, which has no valid {self.kind}" for name in absent]
        return said

    def server_credentials(self) -> grpc.ServerCredentials:
        """TLS as the config wants it; with certificates each peer must show one of ours."""
        server = self.folder.pair("server")
        pair = (server.key.encode(), server.certificate.encode())
        if self.kind == "token":
            return grpc.ssl_server_credentials([pair])
        authority = self.folder.certificate("authority").encode()
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=True)


def open_access(config: ServerConfig, now: float) -> Access | None:
    """What the config asks for; None where nobody is asked who they are. Raises StateError."""
    return None if config.auth == "none" else Access(config, now)


def write_secret(path: Path, text: str, fresh: bool = False) -> None:
    """Write a file that only its owner can read; as a whole or not at all.

    Raises ConfigError where ``fresh`` and there is such a file already, or it cannot be written.
    """
    if fresh and path.exists():
        raise ConfigError(f"{path} exists; name another file with --out")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)  # whoever made it might have it open, and read on
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        sync_file(draft)
        os.replace(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
