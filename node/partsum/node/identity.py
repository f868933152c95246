"""Who a node is, where it may be any of several: a folder of credentials, and the first free one.

Replicas of one service are started alike, and yet each node speaks in a name of its own. What makes
a name taken is the lock on its state folder, which ends with the process that holds it: a replica
that takes a dead one's place finds its finished updates too.
"""

from __future__ import annotations

import re
from pathlib import Path

from partsum.node.state import NodeState, StateInUseError
from partsum.shared.credentials import Credentials, load_credentials
from partsum.shared.errors import ConfigError, StateError

_PATTERN = "*.credentials.toml"


def take_free(folder: Path, root: Path, name: str | None) -> tuple[Credentials, NodeState]:
    """The first credentials in ``folder`` that no other node uses, with the state folder held.

    Args:
        folder: of NAME.credentials.toml files, which may be replaced but is only read here.
        root: where the state folders are; the nodes that share ``folder`` share it too.
        name: take this node's and no other's.

    Raises:
        ConfigError: there are none, or one cannot be used.
        StateError: all are in use, or a state folder cannot be written.
    """
    known = [load_credentials(file, "node") for file in sorted(folder.glob(_PATTERN), key=_order)]
    if not known:
        raise ConfigError(
            f"--credentials {folder}: the folder holds no {_PATTERN}. On the coordinator's host, "
            "`partsum tokens node NAME` makes one"
        )
    wanted = [one for one in known if name in {None, one.name}]
    for credentials in wanted:
        try:
            return credentials, NodeState(root / credentials.name)
        except StateInUseError:
            continue
    names = ", ".join(one.name for one in wanted or known)
    if not wanted:
        raise ConfigError(f"--name {name!r}: the credentials in {folder} are those of {names}")
    raise StateError(
        f"other nodes here use all credentials in {folder} ({names}). Start fewer nodes, or make "
        "more credentials with `partsum tokens node NAME`"
    )


def _order(path: Path) -> list[tuple[int, str]]:
    """node2 comes before node10."""
    return [(int(piece or 0), text) for text, piece in re.findall(r"(\D*)(\d*)", path.name)]
