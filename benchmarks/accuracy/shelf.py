"""Runs that are kept, so that an interrupted benchmark goes on where it was."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.federation import Federation, federate
from benchmarks.accuracy.methods import Plan
from benchmarks.accuracy.simulator import Mark, simulate
from benchmarks.accuracy.workload import Workload
from pydantic import TypeAdapter


@dataclass(frozen=True)
class Kept:
    """A run's marks, with the plan and workload that they are of."""

    of: str
    marks: tuple[Mark, ...]


_KEPT = TypeAdapter(Kept)


def run(load: Workload, plan: Plan, seed: int, path: Path) -> tuple[tuple[Mark, ...], bool]:
    """Run a plan, or take its marks from the file where they are of the same one.

    Returns them, and whether it ran.
    """
    said = f"{plan} {load.spec} {load.budget} {load.nodes} {load.glance}"
    of = re.sub(" at 0x[0-9a-f]+", "", said)  # a schedule's address in memory says nothing
    if path.exists():
        kept = _KEPT.validate_json(path.read_bytes())
        if kept.of == of:
            return kept.marks, False
    marks, _ = (
        federate(load, plan, seed) if isinstance(plan, Federation) else simulate(load, plan, seed)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_KEPT.dump_json(Kept(of, tuple(marks)), indent=2))
    return tuple(marks), True
