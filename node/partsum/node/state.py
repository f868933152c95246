"""What a node keeps between its lives: who it is, and its last finished update."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from partsum.shared import wire
from partsum.shared.errors import StateError
from partsum.shared.messages import Assignment, Blob, NodeProfile, Update


@dataclass(frozen=True)
class Finished:
    """A finished update, and the key of the assignment that it answers."""

    key: str
    update: Update


class NodeState:
    """A node's folder: locked while its daemon lives.

    Raises:
        StateError: another daemon has it, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs"
        self._finished = folder / "finished.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / "lock", "a")  # noqa: SIM115 - held until close()
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.instance = self._read_instance()
        except BlockingIOError as error:
            self._lock.close()
            raise StateError(
                f"another node daemon uses the state folder {folder}. Give this one a --name or a "
                "--state-dir of its own"
            ) from error
        except OSError as error:
            raise StateError(
                f"cannot use the state folder {folder}: {error.strerror or error}. Choose another "
                "one with --state-dir"
            ) from error

    def _read_instance(self) -> str:
        path = self.folder / "instance"
        if path.exists() and (text := path.read_text(encoding="utf-8").strip()):
            return text
        instance = uuid.uuid4().hex
        _write(path, instance)
        return instance

    def close(self) -> None:
        """Let another daemon have the folder."""
        self._lock.close()

    def finish(self, finished: Finished) -> None:
        """Remember an update; the one before is forgotten."""
        _write(self._finished, json.dumps(asdict(finished)))

    def forget(self) -> None:
        """There is no last update: the coordinator will not have it."""
        self._finished.unlink(missing_ok=True)

    def finished(self) -> Finished | None:
        """The last update, or None; what cannot be read is nothing."""
        try:
            values = json.loads(self._finished.read_text(encoding="utf-8"))
            update = values["update"]
            return Finished(values["key"], Update(**{**update, "blob": Blob(**update["blob"])}))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def assignment_key(assignment: Assignment, profile: NodeProfile) -> str:
    """Equal for assignments whose updates are interchangeable on this node.

    Task and data count too: two runs may both have a part "r0-p1" from seed 0.
    """
    digest = xxhash.xxh3_128(f"{profile.task_digest}/{profile.data_digest}/".encode())
    digest.update(wire.assignment_to_wire(assignment).SerializeToString(deterministic=True))
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
