"""A search's heavy work: structures are scored, and the best goes into the base."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from torch import nn
from torch.utils.data import Subset, TensorDataset

from partsum.coordinator.clock import Stages
from partsum.coordinator.cost import part_cost
from partsum.coordinator.cutter import base_name
from partsum.coordinator.leaderboard import Candidate, Leaderboard, Score
from partsum.coordinator.merge import AVERAGE, Contribution, merge_files
from partsum.coordinator.phases import handoff_rounds
from partsum.coordinator.planner.structures import Newcomer
from partsum.coordinator.records import Received, RoundPlan, RoundResult, finite
from partsum.coordinator.search import Search
from partsum.coordinator.search_cutter import SearchCutter
from partsum.coordinator.workshop import Workshop
from partsum.shared.files import sync_folder
from partsum.shared.messages import Update
from partsum.shared.task import Samples, Scores, num_samples
from partsum.shared.tensors import TensorFile


class SearchWorkshop(Workshop):
    """Works on one search's store."""

    _cutter = SearchCutter
    cutter: SearchCutter

    @property
    def search(self) -> Search:
        """What is trained, and what is known of it."""
        return self.cutter.search

    def board(self) -> Leaderboard:
        """As of the last committed round."""
        return self.search.board()

    def merge_round(
        self, plan: RoundPlan, missing: tuple[int, ...], stages: Stages
    ) -> tuple[RoundResult, dict[str, object]]:
        """Score what is in and write the next base: the result, and the facts to commit with it.

        A structure that is not in keeps its last weights and score, and ranks behind all that are.
        """
        stored = self.store.updates(plan.round)
        received = {k: item for k, item in stored.items() if k not in missing}
        out = self.store.base_path(base_name(plan.round + 1))
        with stages.timing("evaluate"):
            board = self._scored(plan, received)
        winners = self._winners(board, plan.round)
        with stages.timing("merge"), ExitStack() as files:
            digest = self._write_winners(plan, winners, received, out, files)
            facts = self._search_facts(plan, board, winners[0], received)
        with stages.timing("evaluate"):
            scores = self._winner_scores(plan.round, winners[0], out)
        return self._result(plan, received, out, digest, scores), facts

    def _result(
        self,
        plan: RoundPlan,
        received: Collection[int],
        out: Path,
        digest: str,
        scores: Scores | None,
    ) -> RoundResult:
        absent = tuple(k for k in range(len(plan.parts)) if k not in received)
        return RoundResult.scored(out.name, digest, scores, absent)

    def _scored(self, plan: RoundPlan, received: Mapping[int, Received]) -> Leaderboard:
        """The leaderboard with the round's structures and their scores."""
        board = self.search.board()
        rung = self.search.rung(board, plan.round)
        known = {one.bits for one in board.candidates}
        new = [self._candidate(one) for one in rung if one.bits not in known]
        scores = {}
        for k, item in sorted(received.items()):
            part = plan.parts[k].part
            with TensorFile(self.update_path(plan.round, k)) as file:
                model = self.base.part_model(part, file)
            scores[self.search.bits(part)] = self._score(model, plan.round, item.update)
        return board.joined(new, [one.bits for one in rung]).scored(scores)

    def _score(self, model: nn.Module, round: int, update: Update) -> Score:
        """A structure's, on the samples that it is ranked on; ``update`` says what it cost."""
        shown = first_samples(self.validation, self.config.structures.validation_samples)
        found = self.base.scores(model, shown)
        spent = update.train_seconds / max(1, update.num_samples)
        return Score(round, finite(found.loss), finite(found.accuracy), spent)

    def _candidate(self, one: Newcomer) -> Candidate:
        base, part = self.base, self.search.part(one.bits)
        batch = self.config.training.batch_size
        cost = part_cost(base.shape, base.widths, part, base.task, self.train, batch)
        return Candidate(one.bits, cost.parameters, cost.flops_per_sample, one.parent)

    def _winners(self, board: Leaderboard, round: int) -> list[str]:
        """Whose weights the base gets: the best one's, or at the end those of several."""
        several = self._is_last(round) and self.config.structures.merge == "average"
        scored = [one.bits for one in board.ranked() if one.last and one.bits in board.alive]
        return scored[: self.config.structures.keep if several else 1]

    def _is_last(self, round: int) -> bool:
        """Of the search."""
        return round + 1 == self.config.parts.rounds

    def _write_winners(
        self,
        plan: RoundPlan,
        winners: Sequence[str],
        received: Collection[int],
        out: Path,
        files: ExitStack,
    ) -> str:
        places = {self.search.bits(planned.part): k for k, planned in enumerate(plan.parts)}
        shares = []
        for bits in winners:
            part = self.search.part(bits)
            k = places[bits]
            path = self.update_path(plan.round, k) if k in received else self.search.origin(part)
            assert path is not None, "a winner was trained"
            shares.append(Contribution(part, files.enter_context(TensorFile(path)), 1.0))
        old, metadata = self.store.base_path(plan.base), {"partsum.base": str(plan.round + 1)}
        digest = merge_files(old, shares, self.base.widths, AVERAGE, out, metadata)
        if len(winners) == 1:
            return digest
        off = self.search.part(winners[0]).off
        return self.base.recalibrated(out, self.train, self.config.seed, off) or digest

    def _winner_scores(self, round: int, best: str, path: Path) -> Scores | None:
        """The base, as the best structure, on all of the validation data."""
        every = self.config.parts.evaluate_every
        last = self._is_last(round) or round + 1 == handoff_rounds(self.config).start
        if not (last or (every and (round + 1) % every == 0)):
            return None
        model = self.base.model(path, off=self.search.part(best).off)
        return self.base.scores(model, self.validation)

    def _search_facts(
        self, plan: RoundPlan, board: Leaderboard, best: str, received: Mapping[int, Received]
    ) -> dict[str, object]:
        """What is committed with the round; updates are kept under their structures' names."""
        before, kept = self.search.kept(), {}
        for k, planned in enumerate(plan.parts):
            bits = self.search.bits(planned.part)
            if k in received:
                item, path = received[k], self._keep_update(plan.round, k)
                blob = vars(item.update.blob)
                kept[bits] = {"file": path.name, "blob": blob, "node": item.node}
            elif bits in before:
                kept[bits] = before[bits]
        sync_folder(self.store.folder / "parts")
        structure = list(self.search.part(best).off)
        return {"parts": kept, "search": self.search.dumped(board), "structure": structure}


def first_samples(samples: Samples, count: int) -> Samples:
    """The first ``count`` samples; all where that is 0."""
    if not count or count >= num_samples(samples):
        return samples
    if isinstance(samples, TensorDataset):
        return TensorDataset(*(tensor[:count] for tensor in samples.tensors))
    return Subset(samples, range(count))
