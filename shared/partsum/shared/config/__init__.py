"""The run's configuration: TOML into frozen models, and what is wrong said in words.

Each field is followed by what it does; docs/configuration.md is generated from these lines.
"""

from partsum.shared.config.gang import CotrainConfig, GangConfig
from partsum.shared.config.handoff import HandoffConfig
from partsum.shared.config.outer import OuterConfig
from partsum.shared.config.regularisation import RegularisationConfig
from partsum.shared.config.relevance import RelevanceConfig
from partsum.shared.config.run import RunConfig
from partsum.shared.config.section import Section
from partsum.shared.config.start import StartConfig
from partsum.shared.config.structures import GatesConfig, StructuresConfig
from partsum.shared.config.study import StudyConfig
from partsum.shared.config.text import load_config, parse_config
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

__all__ = [
    "CotrainConfig",
    "DataConfig",
    "GangConfig",
    "GatesConfig",
    "HandoffConfig",
    "MergeConfig",
    "OuterConfig",
    "PartsConfig",
    "PrivacyConfig",
    "RegularisationConfig",
    "RelevanceConfig",
    "RoundsConfig",
    "RunConfig",
    "Section",
    "ServerConfig",
    "StartConfig",
    "StructuresConfig",
    "StudyConfig",
    "TaskConfig",
    "TrackersConfig",
    "TrainingConfig",
    "WireConfig",
    "load_config",
    "parse_config",
]
