"""The lock that keeps a run folder to one coordinator; it ends with the process."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

from partsum.shared.errors import StateError


def lock_file(path: Path) -> TextIO:
    """Lock the file of a run folder until it is closed.

    Raises:
        StateError: another coordinator holds it, or it cannot be made.
    """
    try:
        handle = open(path, "w", encoding="ascii")  # noqa: SIM115 - held until close()
    except OSError as error:
        raise StateError(f"the run folder {path.parent} cannot be written: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise StateError(
            f"the run {path.parent} is open in another coordinator; stop that one first, or start "
            "a new run with --new"
        ) from error
    return handle
