"""The heavy work of a hand-off's rounds: that of planner "full", with what was found before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from partsum.coordinator.handoff_cutter import HandoffCutter
from partsum.coordinator.handoff_plan import rounds_config
from partsum.coordinator.merge import Contribution
from partsum.coordinator.phases import handoff_rounds
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.workshop import Workshop
from partsum.shared.messages import Update
from partsum.shared.part import Part


class HandoffWorkshop(Workshop):
    """Works on the store of ``parts``, whose rounds came before. ``config`` is the rounds' own."""

    _cutter = HandoffCutter
    cutter: HandoffCutter

    def __init__(self, parts: Workshop) -> None:
        off = parts.store.fact("structure") or parts.config.gates.off
        config = rounds_config(parts.config, off)
        super().__init__(config, parts.store, parts.base, parts.train, parts.validation)
        self.cutter.norm_slices = parts.norm_parts
        first = handoff_rounds(config).start
        self._anew = (first,)  # a momentum of the parts phase is not that of this outer step
        self.inspector.first_round = first

    def norm_parts(self, plan: RoundPlan | None) -> list[Part]:
        """The parts whose slices layer norms keep to."""
        return list(plan.handoff.norm_parts) if plan is not None and plan.handoff else []

    def _contributions(
        self,
        plan: RoundPlan,
        updates: Mapping[int, Update],
        kept: Mapping[str, Any],
        path_of: Callable[[int, int], Path],
        files: ExitStack,
    ) -> dict[int, Contribution]:
        """Of a gang one member delivers for all; the others' updates are the start itself."""
        trained = {k: update for k, update in updates.items() if update.num_samples}
        return super()._contributions(plan, trained, kept, path_of, files)
