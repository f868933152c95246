"""DeepSpeed's moments between two stretches of the hand-off: kept on the node, rank by rank.

    zero/p1-s200.safetensors     of part 1, after step 200 of the hand-off

A rank's share of ZeRO is what that rank needs again, if the same place goes on: the same rank of as
many, at the same stage. Elsewhere moments begin anew, and it is said. DeepSpeed's own checkpoints
would hold the weights too, which come from the coordinator, and would want all ranks' files in one
folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from partsum.shared.errors import WireError
from partsum.shared.messages import Assignment
from partsum.shared.moments import part_digest
from partsum.shared.tensors import TensorFile, save_tensors
from partsum.shared.zero.engine import Engine, Place, count_steps

log = logging.getLogger(__name__)

_KEEP = 2  # of each part: a round may have to be trained again
_IDENTITY = "place"
_START = "start"  # digest of what the stretch that left them began with


class ZeroMoments:
    """The moments of one assignment's rank. All ranks of a gang make every call together."""

    def __init__(self, folder: Path, assignment: Assignment, place: Place) -> None:
        assert assignment.zero is not None
        self._folder = folder / "zero"
        self._a, self._zero, self._place = assignment, assignment.zero, place

    def go_on(self, engine: Engine) -> bool:
        """Let a fresh engine's optimizer go on where the last stretch ended, on all ranks or none.

        False where it begins anew, which is right for the first stretch alone.
        """
        if self._zero.first_step == 0:
            return False
        kept = self._kept(engine)
        agreed = torch.tensor([int(kept is not None)], device=self._place.device)
        distributed.all_reduce(agreed, distributed.ReduceOp.MIN)
        if kept is None or not int(agreed):
            log.warning(
                "assignment %s begins without DeepSpeed's moments: %s",
                self._a.id,
                "another rank has none"
                if kept
                else "this node has not trained this rank's last stretch, or has lost them",
            )
            return False
        state = _adam(engine).state
        for k, parameter in enumerate(_flat(engine)):
            held = {key: kept[f"{k}/{key}"] for key in ("exp_avg", "exp_avg_sq", "step")}
            step = held.pop("step")
            moved = {key: value.to(parameter.device) for key, value in held.items()}
            state[parameter] = {"step": _like(engine, step), **moved}
        count_steps(engine, self._zero.first_step)
        return True

    def keep(self, engine: Engine) -> None:
        """Write this rank's moments, and forget those that no round can need again."""
        tensors: dict[str, Tensor] = {}
        state = _adam(engine).state
        for k, parameter in enumerate(_flat(engine)):
            for key in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"{k}/{key}"] = torch.as_tensor(state[parameter][key]).detach().cpu()
        self._folder.mkdir(parents=True, exist_ok=True)
        end = self._zero.first_step + self._zero.steps
        start = self._a.start.digest if self._a.start else ""
        metadata = {_IDENTITY: self._identity(), _START: start}
        save_tensors(self._path(end), tensors, metadata, durable=False)
        mine = sorted(self._folder.glob(f"p{self._a.part_index}-s*"), key=_step_of)
        done = [path for path in mine if _step_of(path) <= end]
        for path in set(mine) - set(done[-_KEEP:]):  # later ones are another run's, or taken back
            path.unlink(missing_ok=True)

    def _kept(self, engine: Engine) -> dict[str, Tensor] | None:
        """The last stretch's, if they fit."""
        try:
            with TensorFile(self._path(self._zero.first_step)) as file:
                if file.metadata.get(_IDENTITY) != self._identity():
                    return None
                if file.metadata.get(_START) != self._zero.start_before:
                    return None  # another run's
                found = {name: file.read(name) for name in file.tensors}
        except (OSError, WireError):
            return None
        shapes = {f"{k}/exp_avg": p.shape for k, p in enumerate(_flat(engine))}
        known = {name: t.shape for name, t in found.items() if name.endswith("/exp_avg")}
        return found if known == shapes else None

    def _path(self, step: int) -> Path:
        return self._folder / f"p{self._a.part_index}-s{step}.safetensors"

    def _identity(self) -> str:
        """What has to be the same for moments to be those of this rank."""
        zero = self._zero
        return json.dumps(
            {
                "way": zero.way,
                "stage": zero.stage,
                "offload": zero.offload,
                "steps": zero.total_steps,
                "rank": self._place.rank,
                "ranks": self._place.world_size,
                "part": part_digest(self._a.part),
                "seed": self._a.seed,
                "data": self._a.cluster.digest,
            },
            sort_keys=True,
        )


def _adam(engine: Engine) -> Any:
    """The optimizer that DeepSpeed wraps."""
    return getattr(engine, "basic_optimizer", engine.optimizer)


def _flat(engine: Engine) -> Iterator[Tensor]:
    """What this rank's optimizer steps: its share of the float32 weights, a piece for each group.

    Stage 3 puts each piece into its group for the moment of its step only.
    """
    pieces = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    if pieces is not None:
        yield from pieces
        return
    for group in _adam(engine).param_groups:
        yield from group["params"]


def _like(engine: Engine, step: Tensor) -> int | Tensor:
    """The step count as the optimizer keeps it: torch's as a tensor, CPUAdam's as a number."""
    return int(step) if hasattr(_adam(engine), "ds_opt_adam") else step


def _step_of(path: Path) -> int:
    return int(path.stem.rpartition("-s")[2])
