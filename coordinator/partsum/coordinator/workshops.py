"""Who works on which round of a run."""

from __future__ import annotations

from pathlib import Path

from partsum.coordinator.base import Base
from partsum.coordinator.handoff_workshop import HandoffWorkshop
from partsum.coordinator.phases import phase_of
from partsum.coordinator.search_workshop import SearchWorkshop
from partsum.coordinator.store import Store
from partsum.coordinator.study.workshop import StudyWorkshop
from partsum.coordinator.team_workshop import TeamWorkshop
from partsum.coordinator.workshop import Workshop
from partsum.shared.config import RunConfig
from partsum.shared.task import Samples


class Workshops:
    """A run's workshops: that of its parts, and that of a hand-off over nodes."""

    def __init__(
        self, config: RunConfig, store: Store, base: Base, train: Samples, validation: Samples
    ) -> None:
        self._config, self._store = config, store
        self.parts = _kind(config)(config, store, base, train, validation)
        self._handoff: HandoffWorkshop | None = None  # once the rounds before it are done

    def of(self, round: int) -> Workshop:
        """Who works on a round."""
        if phase_of(self._config, round) != "handoff":
            return self.parts
        self._handoff = self._handoff or HandoffWorkshop(self.parts)
        return self._handoff

    def gone_back(self) -> None:
        """The run has gone back some rounds, and may find another structure to hand over."""
        self._handoff = None

    def kept_paths(self, rounds: int) -> set[Path]:
        """The files beside the bases of the newest committed ``rounds``; 0: of all."""
        newest = list(self._store.results())[-rounds:]
        return {path for round in newest for path in self.of(round).files_of(round)}


def _kind(config: RunConfig) -> type[Workshop]:
    if config.parts.is_study:
        return StudyWorkshop
    if config.parts.is_search:
        return TeamWorkshop if config.cotrain.rounds else SearchWorkshop
    return Workshop
