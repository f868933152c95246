"""A whole run.toml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from partsum.shared.config.fit import (
    check_ahead,
    check_merge,
    check_outer,
    check_privacy,
    check_proximal,
    check_relevance,
    check_secrecy,
    check_start,
    check_study,
    check_wire,
)
from partsum.shared.config.gang import CotrainConfig, GangConfig, check_gang
from partsum.shared.config.handoff import HandoffConfig, check_handoff
from partsum.shared.config.outer import OuterConfig
from partsum.shared.config.regularisation import RegularisationConfig, check_regularisation
from partsum.shared.config.relevance import RelevanceConfig
from partsum.shared.config.section import Section
from partsum.shared.config.start import StartConfig
from partsum.shared.config.structures import GatesConfig, StructuresConfig, check_structures
from partsum.shared.config.study import StudyConfig
from partsum.shared.config.trackers import TrackersConfig
from partsum.shared.config.trust import MergeConfig, PrivacyConfig, ServerConfig
from partsum.shared.config.wire import WireConfig
from partsum.shared.config.work import (
    DataConfig,
    PartsConfig,
    RoundsConfig,
    TaskConfig,
    TrainingConfig,
)


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "run"
    """The run's name, part of its folder's name."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """All randomness comes from this number."""
    deterministic: bool = True
    """Same seed, same bytes: deterministic algorithms, updates merged in a fixed order."""
    folder: str = "runs"
    """Where run folders are made; relative to where the coordinator starts."""
    keep_bases: Annotated[int, Field(ge=0)] = 3
    """How many of the newest base versions to keep; 0 keeps all."""
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    start: StartConfig = StartConfig()
    parts: PartsConfig = PartsConfig()
    gates: GatesConfig = GatesConfig()
    structures: StructuresConfig = StructuresConfig()
    cotrain: CotrainConfig = CotrainConfig()
    gang: GangConfig = GangConfig()
    relevance: RelevanceConfig = RelevanceConfig()
    training: TrainingConfig = TrainingConfig()
    regularisation: RegularisationConfig = RegularisationConfig()
    rounds: RoundsConfig = RoundsConfig()
    wire: WireConfig = WireConfig()
    merge: MergeConfig = MergeConfig()
    outer: OuterConfig = OuterConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    handoff: HandoffConfig = HandoffConfig()
    study: StudyConfig = StudyConfig()
    server: ServerConfig = ServerConfig()
    trackers: TrackersConfig = TrackersConfig()

    @model_validator(mode="after")
    def _quorum_of_nodes(self) -> RunConfig:
        if not self.handoff.enabled and self.parts.rounds == 0:
            raise ValueError("parts.rounds is 0 and handoff.enabled is false: nothing to do")
        return self

    @model_validator(mode="after")
    def _promises_that_can_be_kept(self) -> RunConfig:
        check_relevance(self.relevance, self.parts)
        check_merge(self.merge, self.parts)
        check_start(self.start, self.parts)
        check_outer(self.outer, self.parts)
        check_proximal(self.training, self.parts)
        check_privacy(self.privacy, self.merge, self.parts, self.handoff)
        check_secrecy(self.privacy, self.merge, self.parts, self.rounds)
        check_wire(self.wire, self.parts, self.privacy)
        check_ahead(self.training, self.parts, self.wire, self.deterministic)
        check_regularisation(self.regularisation, self.gates, self.parts, self.structures)
        check_structures(self.gates, self.parts, self.start, self.wire, self.merge, self.privacy)
        check_gang(self.gang, self.cotrain, self.parts, self.structures, self.server)
        check_handoff(self.handoff, self.parts, self.privacy, self.gang, self.server)
        check_study(self.parts, self.merge, self.outer, self.wire, self.privacy, self.handoff)
        return self
