"""How many files this process may have open: an update of each part, and a few for each node."""

from __future__ import annotations

import resource

from partsum.shared.errors import StateError

_OWN = 128  # libraries, the journal, logs
_ROOM = 1 << 14  # for nodes that stand by, and for strangers, where the machine has it
_EACH = 4  # of a part: its update, where it started from, and its node's two connections


def allow_files(parts: int) -> None:
    """Raise this process's own limit on open files to what a run of so many parts needs.

    Raises StateError where the machine does not let it.
    """
    needed = _OWN + _EACH * parts
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(needed, _ROOM)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StateError(
            f"{parts} parts need up to {needed} open files, but this process may have {hard}; "
            f"raise the limit (ulimit -Hn {needed}, or LimitNOFILE={needed} of a service), or use "
            "fewer parts"
        )
    room = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))


def connections() -> int:
    """How many connections may stand: strangers that only dial must leave files to the run."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (_ROOM if soft == resource.RLIM_INFINITY else soft) // 2
