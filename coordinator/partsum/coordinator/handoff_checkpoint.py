"""DeepSpeed checkpoints that are whole or do not count.

    checkpoints/200/             what DeepSpeed wrote at step 200, all ranks
    checkpoints/200/whole.json   its files' digests, written last: only now does it count
    checkpoints/latest           DeepSpeed's own pointer, for its own tools

A rank's shard cannot be tried out, since its peers would wait for it; so the files are compared
with their digests before anybody loads one, and a damaged checkpoint gives way to the one before.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import distributed

from partsum.shared.errors import HandoffError
from partsum.shared.files import file_digest
from partsum.shared.zero.engine import Engine, count_steps

_KEEP = 2
_MANIFEST = "whole.json"


@dataclass(frozen=True)
class Mark:
    """Where a hand-off is: ``step`` steps done, the mean training loss lately, and its start."""

    step: int
    loss: float
    start_loss: float
    start_accuracy: float


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one hand-off. Every rank makes every call, in the same order.

    ``identity`` says what has to be the same for a checkpoint to fit: ranks, stage, batch, steps.
    """

    folder: Path
    identity: Mapping[str, object]
    rank: int
    say: Callable[[str], None]

    def save(self, engine: Engine, mark: Mark) -> None:
        """Once this returns, on any rank, the checkpoint will be resumed from."""
        tag = str(mark.step)
        if self.rank == 0:
            shutil.rmtree(self.folder / tag, ignore_errors=True)
        distributed.barrier()
        engine.save_checkpoint(str(self.folder), tag, client_state=asdict(mark), save_latest=False)
        if self.rank == 0:
            self._declare_whole(tag)
            self._prune(mark.step)
        distributed.barrier()

    def resume(self, engine: Engine, device: torch.device) -> Mark | None:
        """Load the newest whole checkpoint; None where there is none.

        Raises:
            HandoffError: the checkpoint belongs to a hand-off with other settings.
        """
        found = torch.tensor([self._newest_whole() if self.rank == 0 else -1], device=device)
        distributed.broadcast(found, src=0)
        step = int(found)
        if step < 0:
            return None
        self._check_identity(self.folder / str(step))
        loaded, state = engine.load_checkpoint(str(self.folder), str(step))
        if loaded is None:
            raise HandoffError(f"DeepSpeed could not load its checkpoint {self.folder / str(step)}")
        count_steps(engine, step)
        self.say(f"resumed from the checkpoint of step {step}")
        return Mark(**{name: state[name] for name in Mark.__dataclass_fields__})

    def _declare_whole(self, tag: str) -> None:
        inside = self.folder / tag
        files = {str(f.relative_to(inside)): file_digest(f) for f in _files(inside)}
        _write(inside / _MANIFEST, json.dumps({"identity": self.identity, "files": files}))
        _write(self.folder / "latest", tag)

    def _prune(self, newest: int) -> None:
        for step in [s for s in self._steps() if s <= newest][_KEEP:]:
            shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def _steps(self) -> list[int]:
        """The steps that have a folder, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            (int(f.name) for f in self.folder.iterdir() if f.name.isdigit()), reverse=True
        )

    def _newest_whole(self) -> int:
        for step in self._steps():
            if _is_whole(self.folder / str(step)):
                return step
            self.say(f"the checkpoint of step {step} is damaged or unfinished; left out")
        return -1

    def _check_identity(self, checkpoint: Path) -> None:
        theirs = json.loads((checkpoint / _MANIFEST).read_text())["identity"]
        ours = json.loads(json.dumps(self.identity))
        differing = [
            f"{key} was {theirs.get(key)!r} and is {value!r}"
            for key, value in ours.items()
            if theirs.get(key) != value
        ]
        if differing:
            raise HandoffError(
                f"the checkpoint {checkpoint} is of another hand-off: {'; '.join(differing)}. "
                f"Go back to those settings, or remove {self.folder} to begin again from the base"
            )


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name != _MANIFEST)


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / _MANIFEST).read_text())["files"]
        return all(file_digest(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _write(path: Path, text: str) -> None:
    """Write a small file under a temporary name, then give it its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
