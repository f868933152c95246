"""Base 0: fresh from the seed, or grown from trained models; planner relevance trains it on."""

from __future__ import annotations

from pathlib import Path

from partsum.coordinator.base import Base
from partsum.coordinator.cutter import base_name
from partsum.coordinator.folder import copied_models
from partsum.coordinator.growth.start import Start
from partsum.coordinator.relevance.survey import Survey
from partsum.coordinator.store import Store
from partsum.shared.config import RunConfig
from partsum.shared.task import Samples, num_samples
from partsum.shared.transport import release_memory


class FirstBase:
    """Makes one run's base 0, and again, to the byte, should it be lost."""

    def __init__(
        self, config: RunConfig, store: Store, base: Base, train: Samples, validation: Samples
    ) -> None:
        self.config = config
        self.store = store
        self.base = base
        self.train = train
        self.validation = validation
        self.start = Start(config, base, copied_models(config, store.folder))
        self.survey = Survey(config, store, base, train, self._write_untrained)

    def write(self) -> None:
        """Write base 0 where there is none yet, and what parts go on from beside it."""
        path = self.store.base_path(base_name(0))
        if not path.exists():
            if self.store.fact("first_relevance") is not None:  # it was trained, and got lost
                self.survey.train_base(path)
            else:
                self._write_untrained(path)
            release_memory()
        if self.config.start.models and self.start.plants and not self.store.results():
            parts = self.start.write_parts(self.store.folder / "parts", num_samples(self.train))
            self.store.note(parts=parts)

    def rank_units(self) -> None:
        """Planner relevance, before the first round: rank units, once. Raises PartsumError."""
        if self.config.parts.planner == "relevance":
            self.survey.begin(self.store.base_path(base_name(0)))
            release_memory()

    def _write_untrained(self, path: Path) -> None:
        if not self.config.start.models:
            self.base.initial(path, self.config.seed, self.start.scale)
            return
        fresh = self.store.spool_path("fresh.safetensors")
        self.base.initial(fresh, self.config.seed, self.start.scale)
        self.start.grow(fresh, path, self.validation)
        fresh.unlink()
