"""What a node keeps between its lives: who it is, and what it finished last of each part."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from partsum.shared import wire
from partsum.shared.errors import StateError
from partsum.shared.messages import Assignment, Blob, NodeProfile, Update

_KEEP_PARTS = 8


class StateInUseError(StateError):
    """Another daemon has the state folder."""


@dataclass(frozen=True)
class Finished:
    """A finished update, and the key of the assignment that it answers."""

    key: str
    update: Update


class NodeState:
    """A node's folder: locked while its daemon lives.

    Raises:
        StateInUseError: another daemon has it.
        StateError: it cannot be written.
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
            raise StateInUseError(
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

    def finish(self, finished: Finished, keep_before: bool = False) -> None:
        """Remember an update; older ones of the same part are forgotten.

        With ``keep_before`` that of the round before stays: a gang that breaks begins the round
        again, with the moments of then. Of parts that this node has not had for long the oldest
        are forgotten too.
        """
        part, before = finished.update.part_index, finished.update.round - 1
        others = [
            known
            for known in self.finished()
            if known.update.part_index != part or (keep_before and known.update.round == before)
        ]
        self._remember([*others, finished][-_KEEP_PARTS:])

    def forget(self, key: str) -> None:
        """The coordinator will not have the update of that key."""
        self._remember([known for known in self.finished() if known.key != key])

    def finished(self) -> list[Finished]:
        """The last update of each part, the newest last; what cannot be read is nothing."""
        try:
            entries = json.loads(self._finished.read_text(encoding="utf-8"))
            return [_finished(entry) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _remember(self, finished: list[Finished]) -> None:
        _write(self._finished, json.dumps([asdict(known) for known in finished]))


def _finished(entry: Mapping[str, Any]) -> Finished:
    update = entry["update"]
    blobs = {
        name: Blob(**update[name]) for name in ("blob", "encoded") if update.get(name) is not None
    }
    return Finished(entry["key"], Update(**{**update, **blobs}))


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
