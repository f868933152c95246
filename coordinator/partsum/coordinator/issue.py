"""What `partsum certs` and `partsum tokens` do: give credentials to nodes and operators, take them
back, show who has some."""

from __future__ import annotations

import secrets
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from partsum.coordinator.access import AccessFolder, write_secret
from partsum.coordinator.certs import AUTHORITY_DAYS, make_authority, make_server
from partsum.coordinator.members import Key, Kind, check_name
from partsum.shared.credentials import Credentials, Role
from partsum.shared.errors import EXIT_OK, ConfigError

_SERVER_DAYS = 1825
_TOKEN_BYTES = 32
_PRINTED = Path("-")
_LOCAL = "local"  # the operator on the coordinator's host


def init(path: Path, hosts: list[str]) -> int:
    """Make the folder; where there is one, keep its authority and members, and renew the rest."""
    folder, now = AccessFolder(path), time.time()
    folder.start()
    is_new = not folder.has_authority()
    if is_new:
        folder.keep("authority", make_authority(now))
    folder.keep("server", make_server(folder.pair("authority"), hosts, now, _SERVER_DAYS))
    _give_local_operator(folder, now)
    if is_new:
        print(
            f"made the access folder {path}. Keep it from others: who has authority.key can let "
            'anybody in.\nNow set auth = "tokens" or "certificates" under [server], and give each '
            "node its own:\n  partsum tokens node NAME    or    partsum certs node NAME"
        )
    else:
        print(f"made the server certificate in {path} anew; a restarted coordinator takes it")
    return EXIT_OK


def _give_local_operator(folder: AccessFolder, now: float) -> None:
    """`partsum run` on this host finds it by itself, whichever kind the run asks for."""
    certificate, first = _make(folder, "certificate", _LOCAL, "operator", now, _SERVER_DAYS)
    token, second = _make(folder, "token", _LOCAL, "operator", now, _SERVER_DAYS)
    with folder.changing() as members:
        for key in (certificate, token):
            member = members.get(_LOCAL)
            if member is not None and member.newest(key.kind):
                members.revoke(_LOCAL, key.kind)
            members.give(_LOCAL, "operator", key)
        write_secret(folder.operator, first.model_copy(update={"token": second.token}).text())


def give(path: Path, kind: Kind, name: str, role: Role, days: int, out: Path | None) -> int:
    """First credentials for somebody. Raises ConfigError, StateError."""
    check_name(name)
    folder, now, target = AccessFolder(path), time.time(), out or _file_of(name)
    with folder.changing() as members:
        key, credentials = _make(folder, kind, name, role, now, days)
        members.give(name, role, key)
        _deliver(target, credentials, fresh=True)
    _tell(target, role, key)
    return EXIT_OK


def rotate(
    path: Path, kind: Kind, name: str, days: int, grace_hours: float, out: Path | None
) -> int:
    """Other credentials for somebody; the old ones hold for a while."""
    if not 0 <= grace_hours < float("inf"):
        raise ConfigError(f"--grace {grace_hours:g} is not a number of hours")
    folder, now, target = AccessFolder(path), time.time(), out or _file_of(name)
    with folder.changing() as members:
        role = members.role_of(name, kind)
        key, credentials = _make(folder, kind, name, role, now, days)
        members.rotate(name, key, grace_hours * 3600)
        _deliver(target, credentials)
    _tell(target, role, key)
    print(
        f"The {kind} that {name} had holds for {grace_hours:g} hours more, if it still did.",
        file=_talk(target),
    )
    return EXIT_OK


def revoke(path: Path, kind: Kind, name: str) -> int:
    """Whoever shows it is turned away from now on, by a running coordinator too."""
    with AccessFolder(path).changing() as members:
        members.revoke(name, kind)
    print(f"the {kind} of {name} is revoked; a running coordinator cuts {name} off")
    return EXIT_OK


def list_members(path: Path, kind: Kind) -> int:
    """Print who has credentials of that kind."""
    now = time.time()
    table = Table(box=None)
    for column in ("name", "role", "state", "issued", "expires"):
        table.add_column(column)
    for member in AccessFolder(path).members():
        if (key := member.newest(kind)) is not None:
            state = "revoked" if key.revoked else "valid" if key.holds(now) else "expired"
            days = (_day(key.issued), _day(key.expires))
            table.add_row(member.name, member.role, state, *days)
    Console().print(table)
    return EXIT_OK


def _make(
    folder: AccessFolder, kind: Kind, name: str, role: Role, now: float, days: int
) -> tuple[Key, Credentials]:
    if not 0 < days <= AUTHORITY_DAYS:
        raise ConfigError(f"--days {days} is not between 1 and {AUTHORITY_DAYS}")
    return folder.make(kind, name, role, now, days, secrets.token_bytes(_TOKEN_BYTES))


def _deliver(target: Path, credentials: Credentials, fresh: bool = False) -> None:
    """To a file that only its owner can read, or printed: out of a container there is no file."""
    if target == _PRINTED:
        print(credentials.text(), end="")
    else:
        write_secret(target, credentials.text(), fresh)


def _talk(target: Path) -> TextIO:
    """Where what is said goes: not among the credentials."""
    return sys.stderr if target == _PRINTED else sys.stdout


def _file_of(name: str) -> Path:
    return Path(f"{name}.credentials.toml")


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _tell(target: Path, role: Role, key: Key) -> None:
    file = "FILE" if target == _PRINTED else target.name
    use = (
        f"partsum node --coordinator HOST:PORT --credentials {file}"
        if role == "node"
        else f"partsum run status --coordinator HOST:PORT --credentials {file}"
    )
    what = "this" if target == _PRINTED else f"wrote {target}, which"
    print(
        f"{what} holds until {_day(key.expires)}. It is secret: move it over a safe channel, leave "
        f"no copy, and use it with\n  {use}",
        file=_talk(target),
    )
