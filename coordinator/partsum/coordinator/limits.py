"""How many files this process may have open: an update of each part, and a few for each node."""

from __future__ import annotations

import resource

from partsum.shared.errors import StateError

_OWN = 128  # libraries, the journal, logs
_EACH = 4  # of a part: its update, where it started from, and its node's two connections


def allow_files(parts: int) -> None:
    """Raise this process's own limit on open files to what a run of so many parts needs.

    Raises StateError where the machine does not let it.
    """
    needed = _OWN + _EACH * parts
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StateError(
            f"{parts} parts need up to {needed} open files, but this process may have {hard}; "
            f"raise the limit (ulimit -Hn {needed}, or LimitNOFILE={needed} of a service), or use "
            "fewer parts"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
