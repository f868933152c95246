"""Why a worker died, as surely as the kernel tells."""

from __future__ import annotations

import signal
from pathlib import Path


class OomWatch:
    """Notices whether the kernel has killed for want of memory since this was made.

    A cgroup counts the kills of its own processes, whoever ran out: the cgroup (v2 in
    ``memory.events``, v1 in ``memory.oom_control``) or the host. Where no cgroup can be read there
    is the host's count, which also holds the kills of strangers.

    Args:
        root: where the file system begins.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = self._counts()

    def happened(self) -> bool | None:
        """True or False where that is certain, None where it is not."""
        (own, host), (own_now, host_now) = self._before, self._counts()
        if own is not None and own_now is not None:
            return own_now > own
        if host is not None and host == host_now:
            return False
        return None

    def _counts(self) -> tuple[int | None, int | None]:
        own = (_count(path) for path in self._own_files())
        return next((c for c in own if c is not None), None), _count(self._root / "proc/vmstat")

    def _own_files(self) -> list[Path]:
        """Where this process's cgroup may count, the likeliest first."""
        mounts = self._root / "sys/fs/cgroup"
        try:
            lines = (self._root / "proc/self/cgroup").read_text(encoding="ascii").split()
        except (OSError, UnicodeDecodeError):
            return []
        files = []
        for controllers, _, path in (line.partition(":")[2].partition(":") for line in lines):
            inside = path.lstrip("/")
            # A container often sees its own cgroup as the mount's root.
            if not controllers:
                files += [mounts / p / "memory.events" for p in (inside, "", f"unified/{inside}")]
            elif "memory" in controllers.split(","):
                files += [mounts / "memory" / p / "memory.oom_control" for p in (inside, "")]
        return files


def _count(path: Path) -> int | None:
    """The number after ``oom_kill`` in a file of names and numbers."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return next((int(n) for name, n in map(str.split, lines) if name == "oom_kill"), None)
    except (OSError, ValueError):
        return None


def death_in_words(exit_code: int | None, out_of_memory: bool | None = None) -> str:
    """Why a process ended, for a person; ``out_of_memory`` as `OomWatch.happened` says."""
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    if exit_code == -signal.SIGKILL:
        return {
            True: "out of memory: the kernel killed it. A smaller training.batch_size, more parts, "
            "or a higher memory limit for this node will fit",
            False: "killed (SIGKILL) by somebody: the kernel has killed nothing for want of memory",
            None: "killed (SIGKILL), most likely because the host was out of memory",
        }[out_of_memory]
    try:
        return f"signal {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"signal {-exit_code}"
