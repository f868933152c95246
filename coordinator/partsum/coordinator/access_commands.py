"""The commands that say who gets in: certs and tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partsum.coordinator.members import Kind

_DAYS = 365
_GRACE_HOURS = 24.0


def add_access_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Register both; a running coordinator heeds what they change at once."""
    certs = _group(
        commands,
        "certs",
        "make the access folder; give and take certificates",
        'Certificates for auth = "certificates" under [server], and the access folder for both '
        "kinds. Each NAME gets one credentials file, for --credentials.",
    )
    init = _action(certs, "init", "make the access folder, or its server certificate anew")
    init.add_argument(
        "--host",
        dest="hosts",
        nargs="*",
        default=[],
        metavar="NAME_OR_IP",
        help="more names for the coordinator, for other TLS tools; nodes and operators need none",
    )
    init.set_defaults(run=_init)
    _add_members(certs, "certificate", again="renew")
    tokens = _group(
        commands,
        "tokens",
        "give and take tokens, the light choice beside certificates",
        'Tokens for auth = "tokens" under [server]. Only their SHA-256 is kept; they travel over '
        "TLS. `partsum certs init` comes first.",
    )
    _add_members(tokens, "token", again="rotate")


def _group(
    commands: argparse._SubParsersAction[Any], name: str, help: str, description: str
) -> argparse._SubParsersAction[Any]:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=description)
    return parser.add_subparsers(title="actions", metavar="ACTION", required=True)


def _action(
    actions: argparse._SubParsersAction[Any], name: str, text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("access"),
        metavar="DIR",
        help="the access folder (default: access)",
    )
    return parser


def _add_members(actions: argparse._SubParsersAction[Any], kind: Kind, again: str) -> None:
    for role in ("node", "operator"):
        given = _action(actions, role, f"a {kind} for a new {role}")
        _add_output(given)
        given.set_defaults(run=_give, role=role, kind=kind)
    anew = _action(actions, again, f"another {kind} for somebody who has one")
    _add_output(anew)
    anew.add_argument(
        "--grace",
        type=float,
        default=_GRACE_HOURS,
        metavar="HOURS",
        help=f"for how long the old one holds on ({_GRACE_HOURS:g}); 0 if it may be stolen",
    )
    anew.set_defaults(run=_rotate, kind=kind)
    taken = _action(actions, "revoke", f"let nobody in any more by NAME's {kind}, at once")
    taken.add_argument("name", metavar="NAME", help="who is let in no more")
    taken.set_defaults(run=_revoke, kind=kind)
    _action(actions, "list", f"who has a {kind}").set_defaults(run=_list, kind=kind)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="whose it is; a node joins under this name")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write it (NAME.credentials.toml); - prints it",
    )
    parser.add_argument(
        "--days", type=int, default=_DAYS, metavar="N", help=f"for how long it holds ({_DAYS})"
    )


def _init(options: argparse.Namespace) -> int:
    from partsum.coordinator import issue

    return issue.init(options.folder, options.hosts)


def _give(options: argparse.Namespace) -> int:
    from partsum.coordinator import issue

    return issue.give(
        options.folder, options.kind, options.name, options.role, options.days, options.out
    )


def _rotate(options: argparse.Namespace) -> int:
    from partsum.coordinator import issue

    return issue.rotate(
        options.folder, options.kind, options.name, options.days, options.grace, options.out
    )


def _revoke(options: argparse.Namespace) -> int:
    from partsum.coordinator import issue

    return issue.revoke(options.folder, options.kind, options.name)


def _list(options: argparse.Namespace) -> int:
    from partsum.coordinator import issue

    return issue.list_members(options.folder, options.kind)
