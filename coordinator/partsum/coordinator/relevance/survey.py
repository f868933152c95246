"""A run's survey of its units: who is strong, found on the coordinator and kept in the journal.

Before the first round the whole model is trained for some epochs, with ARD where that is the score,
and the base goes on from there: a unit is strong by the weights that it has, so these are kept. A
coordinator that is killed meanwhile begins the survey again, from the seed; one that is restarted
later finds its outcome in the journal.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from partsum.coordinator.base import Base
from partsum.coordinator.planner import Ranking
from partsum.coordinator.relevance.ard import with_ard, without_ard
from partsum.coordinator.relevance.probing import activation_scores, taylor_scores
from partsum.coordinator.relevance.scores import ard_scores, magnitude_scores, sparse_shares
from partsum.coordinator.relevance.training import Lesson, train_whole
from partsum.coordinator.store import Store
from partsum.shared.config import RunConfig
from partsum.shared.errors import WidthError
from partsum.shared.task import Samples
from partsum.shared.tensors import save_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """What a survey found, as it is in the journal.

    ``sparse`` is each group's share of weights that are noise; empty where ARD was not asked.
    """

    score: str
    scores: Mapping[str, list[float]]
    sparse: Mapping[str, float]


def findings(store: Store) -> Findings | None:
    """The newest of a run, or None before its survey."""
    noted = store.fact("relevance") or store.fact("first_relevance")
    return Findings(**noted) if noted else None


def ranking(store: Store, config: RunConfig) -> Ranking:
    """The ranking that a run's next parts are planned by; before its survey all units are alike."""
    found = findings(store)
    return Ranking(found.scores if found else {}, config.relevance.shared)


class Survey:
    """Works on one run's store, in a worker thread.

    ``untrained`` writes base 0 as it was before the survey, always the same.
    """

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        base: Base,
        train: Samples,
        untrained: Callable[[Path], None],
    ) -> None:
        self.config = config
        self.store = store
        self.base = base
        self.train = train
        self._write_untrained = untrained
        self._left = threading.Event()

    def leave(self) -> None:
        """The coordinator stops: a training under way ends with a LeftError."""
        self._left.set()

    def begin(self, path: Path) -> None:
        """Before the first round: base 0 is trained and its units are ranked, unless that is done.

        Raises LeftError, or PartsumError where the training or the ranking comes to nothing.
        """
        if self.store.fact("first_relevance") is None:
            digest, found = self.train_base(path)
            self.store.note(first_base=digest, first_relevance=vars(found))

    def train_base(self, path: Path) -> tuple[str, Findings]:
        """Write base 0, trained; its digest, and what was found. Same seed, same bytes."""
        relevance, began = self.config.relevance, time.monotonic()
        self._write_untrained(path)
        model = self.base.model(path)
        log.info("ranking units by %s: %g epochs of the base", relevance.score, relevance.epochs)
        scores, sparse = self._trained_scores(model)
        state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        digest = save_tensors(path, state, {"partsum.base": "0"})
        digest = self.base.recalibrated(path, self.train, self.config.seed) or digest
        found = self._findings(relevance.score, scores, sparse)
        log.info("ranked the units in %.0f s", time.monotonic() - began)
        return digest, found

    def _trained_scores(self, model: nn.Module) -> tuple[Mapping[str, Tensor], dict[str, float]]:
        """Train the model in place, and score its units."""
        lesson = _lesson(self.config)
        if self.config.relevance.score != "ard":
            if lesson.epochs:
                train_whole(model, self.base.task, self.train, lesson, None, self._left.is_set)
            return self._cheap_scores(model, self.config.relevance.score), {}
        ard = with_ard(model)
        try:
            train_whole(model, self.base.task, self.train, lesson, ard, self._left.is_set)
            alphas = {name: values.detach() for name, values in ard.log_alphas().items()}
        finally:
            without_ard(ard)
        return ard_scores(alphas, self.base.widths), sparse_shares(alphas, self.base.widths)

    def _cheap_scores(self, model: nn.Module, score: str) -> dict[str, Tensor]:
        widths, seed = self.base.widths, self.config.seed
        match score:
            case "magnitude":
                return magnitude_scores(model, widths)
            case "activation":
                return activation_scores(model, widths, self.train, seed)
            case _:
                return taylor_scores(model, widths, self.base.task, self.train, seed)

    def facts(self, path: Path, version: int) -> dict[str, object]:
        """What is committed with a base: its units' ranks, found anew where that is due."""
        every = self.config.relevance.every
        if not every:
            return {}
        if version % every == 0 and version < self.config.parts.rounds:
            score = self.config.relevance.score
            scores = self._cheap_scores(self.base.model(path), score)
            cheap = "taylor" if score == "ard" else score
            return {"relevance": vars(self._findings(cheap, scores, {}))}
        return {"relevance": self.store.fact("relevance")}

    def _findings(
        self, score: str, scores: Mapping[str, Tensor], sparse: Mapping[str, float]
    ) -> Findings:
        """Of the hidden groups, in so many digits as are worth to be kept."""
        hidden = [group.name for group in self.base.widths.groups if group.depth == "hidden"]
        unknown = [name for name in hidden if name not in scores]
        if len(unknown) == len(hidden):
            raise WidthError(
                f'relevance.score = "{score}" says nothing about any hidden group of this model: '
                "it knows Linear, Conv2d and Conv1D layers that the model calls; take "
                '"magnitude" or "taylor"'
            )
        for name in unknown:
            log.warning("%s says nothing about width group %s: its units are alike", score, name)
        kept = {name: _short(scores[name]) for name in hidden if name in scores}
        return Findings(score, kept, {name: sparse[name] for name in kept if name in sparse})


def _short(scores: Tensor) -> list[float]:
    """Of a base that has diverged some are no numbers; a unit that nothing is known of is weak."""
    return [float(f"{value:.6g}") for value in scores.nan_to_num(0.0, 0.0, 0.0).tolist()]


def _lesson(config: RunConfig) -> Lesson:
    training = config.training
    return Lesson(
        epochs=config.relevance.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        betas=training.betas,
        warmup=training.warmup,
        weight_decay=training.weight_decay,
        kl_warmup=config.relevance.kl_warmup,
        precision=training.precision,
        seed=config.seed,
    )
