"""A config with a [study] as the config of the run that carries it out. Pure."""

from __future__ import annotations

from pathlib import Path

from partsum.coordinator.planner.sweep import cells
from partsum.coordinator.report_tables import config_text
from partsum.shared.config import PrivacyConfig, RunConfig
from partsum.shared.errors import ConfigError

_KEPT = ("name", "seed", "deterministic", "folder", "keep_bases", "task", "server")
_FOREVER = 1e9  # seconds: a study waits for every model that a node works on
_LEFT_OUT = ("proximal", "parts_share", "ahead")  # of [training]: they are about rounds


def study_run(config: RunConfig, source: Path) -> str:
    """The run.toml of the study in ``config``, which was read from ``source``.

    What says how a base is made ([parts], [merge], [outer], [wire], [handoff]) is left aside: a
    study makes none.

    Raises:
        ConfigError: the config promises privacy, which a study, where the coordinator looks at
            each model, would not keep.
    """
    if config.privacy != PrivacyConfig():
        raise ConfigError(
            f"{source}: a study looks at each node's model by itself, so it cannot keep what "
            "[privacy] promises; remove that section"
        )
    given = config.model_dump(mode="json")
    base = config.study.base
    values = {name: given[name] for name in _KEPT} | {
        "data": {"stream": config.data.stream},
        "training": {k: v for k, v in given["training"].items() if k not in _LEFT_OUT},
        "parts": {
            "planner": "study",
            "count": len(cells(config.study)),
            "rounds": 2 if config.study.trains_bases else 1,
        },
        "rounds": given["rounds"]
        | {
            "min_nodes": config.rounds.min_nodes or 1,
            "deadline_seconds": _FOREVER,
            # One model is enough: what fails everywhere is a row without figures.
            "quorum": 1e-9,
            # By the median of all models the whole one is always late.
            "backup_after": 0.0,
        },
        "merge": {"norm_bound": 0.0},
        "handoff": {"enabled": False},
        "study": given["study"] | ({"base": str((source.parent / base).resolve())} if base else {}),
    }
    return config_text(values) + "\n"
