"""The model that a hand-off trains and leaves, and where its ranks on this host say things."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import nn

from partsum.coordinator.handoff import HandoffJob
from partsum.shared.gates import close_gates, find_structure
from partsum.shared.norms import group_norms
from partsum.shared.part import Part
from partsum.shared.regularisation import regularise
from partsum.shared.task import Task
from partsum.shared.tensors import load_tensors


def build_model(job: HandoffJob, task: Task) -> nn.Module:
    """The task's model with the base's weights, its norms grouped where the job says so.

    Branches whose gates are off are not in it, and in training gates are random where the job says
    so.
    """
    model = task.model()
    model.load_state_dict(load_tensors(job.base), strict=True)
    widths = find_structure(model) if job.norm_parts or job.off else None
    if widths is not None:
        parts = [Part({name: tuple(u) for name, u in part.items()}) for part in job.norm_parts]
        group_norms(model, widths, parts)
        close_gates(model, widths, job.off)
    return regularise(model, job.regularisation, widths)


def final_metadata(
    task: str,
    seed: int,
    norms: str,
    norm_parts: Sequence[Mapping[str, Sequence[int]]],
    off: Sequence[str],
) -> dict[str, str]:
    """What the final weights' file says of itself."""
    metadata = {"task": task, "seed": str(seed), "norms": norms}
    if norm_parts:
        metadata["norm_parts"] = json.dumps(norm_parts, separators=(",", ":"))
    if off:
        metadata["gates_off"] = json.dumps(list(off), separators=(",", ":"))
    return metadata


def log(text: str) -> None:
    """Say something in handoff.log, where the ranks' output goes."""
    print(f"partsum: {text}", flush=True)
