"""What a valid config had better not say: said before anything is spent."""

from __future__ import annotations

from partsum.shared.config import RunConfig, StructuresConfig, StudyConfig
from partsum.shared.config.trust import LOOPBACK


def advise(config: RunConfig) -> list[str]:
    """A sentence for each thing that is allowed but ends badly."""
    return [
        *_open_door(config),
        *_clusters_without_handoff(config),
        *_known_before(config),
        *_study_aside(config),
        *_search_aside(config),
    ]


def _open_door(config: RunConfig) -> list[str]:
    server = config.server
    if server.auth != "none" or server.host in LOOPBACK:
        return []
    return [
        f'host = "{server.host}" with auth = "none": whoever can reach it can fetch the model, '
        "send updates and stop the run (docs/security.md)"
    ]


def _clusters_without_handoff(config: RunConfig) -> list[str]:
    """Measured (docs/method.md)."""
    block = config.parts.planner == "complement" and config.parts.mode == "block"
    if not block or config.data.clusters == "iid" or config.handoff.enabled:
        return []
    return [
        f'clusters = "{config.data.clusters}" without a hand-off: the mean of parts that each saw '
        "other data is poor (70-76 % where a hand-off reached 86 %); enable the hand-off, or use "
        'clusters = "iid"'
    ]


def _known_before(config: RunConfig) -> list[str]:
    """Differential privacy counts what the run's rounds tell, and nothing before them."""
    if not (config.start.models and config.privacy.noise_multiplier):
        return []
    return [
        "start.models with privacy.noise_multiplier: epsilon says nothing of what those models "
        "tell of the data that they were trained on; take only ones that never saw this run's data"
    ]


def _study_aside(config: RunConfig) -> list[str]:
    if config.parts.is_study or config.study == StudyConfig():
        return []
    return [
        "[study] is for `partsum study`, and means nothing here; with --dry-run that command shows "
        "what the study would cost"
    ]


def _search_aside(config: RunConfig) -> list[str]:
    if config.parts.is_search or config.structures == StructuresConfig():
        return []
    return ['[structures] is for parts.planner = "structures", and means nothing here']
