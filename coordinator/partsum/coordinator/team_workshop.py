"""Co-training's heavy work: what structures share they hold alike, so the base is put together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from partsum.coordinator.clock import Stages
from partsum.coordinator.cutter import base_name
from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.merge import AVERAGE, Contribution, merge_files
from partsum.coordinator.phases import phase_of
from partsum.coordinator.records import Received, RoundPlan, RoundResult
from partsum.coordinator.search_workshop import SearchWorkshop
from partsum.shared.tensors import TensorFile


class TeamWorkshop(SearchWorkshop):
    """A search whose best structures are then trained in step, on weights that they share."""

    def merge_round(
        self, plan: RoundPlan, missing: tuple[int, ...], stages: Stages
    ) -> tuple[RoundResult, dict[str, object]]:
        """As for the search; a round of co-training makes the base of what all members hold.

        Structures are scored as what that base makes of them, and the best of them is the run's.
        """
        if phase_of(self.config, plan.round) != "cotrain":
            return super().merge_round(plan, missing, stages)
        stored = self.store.updates(plan.round)
        received = {k: item for k, item in sorted(stored.items()) if k not in missing}
        out = self.store.base_path(base_name(plan.round + 1))
        with stages.timing("merge"):
            digest = self._write_shared(plan, received, out)
        with stages.timing("evaluate"):
            board = self._standing(plan, received, out)
            best = next(one.bits for one in board.ranked() if one.bits in board.alive)
            scores = self._winner_scores(plan.round, best, out)
        facts = {
            "parts": {},  # structures go on from the base
            "team": [self.search.bits(planned.part) for planned in plan.parts],
            "search": self.search.dumped(board),
            "structure": list(self.search.part(best).off),
        }
        return self._result(plan, received, out, digest, scores), facts

    def _write_shared(self, plan: RoundPlan, received: Mapping[int, Received], out: Path) -> str:
        """The next base; the mean of what is alike is that, bit for bit."""
        old, metadata = self.store.base_path(plan.base), {"partsum.base": str(plan.round + 1)}
        with ExitStack() as files:
            shares = []
            for k in received:
                file = files.enter_context(TensorFile(self.update_path(plan.round, k)))
                shares.append(Contribution(plan.parts[k].part, file, 1.0))
            digest = merge_files(old, shares, self.base.widths, AVERAGE, out, metadata)
        off = plan.parts[min(received)].part.off  # the best one's at the end of the search
        return self.base.recalibrated(out, self.train, self.config.seed, off) or digest

    def _standing(
        self, plan: RoundPlan, received: Mapping[int, Received], out: Path
    ) -> Leaderboard:
        """The leaderboard with the scores of the structures that took part."""
        scores = {}
        for k, item in received.items():
            part = plan.parts[k].part
            model = self.base.model(out, off=part.off)
            scores[self.search.bits(part)] = self._score(model, plan.round, item.update)
        return self.search.board().joined([], list(scores)).scored(scores)
