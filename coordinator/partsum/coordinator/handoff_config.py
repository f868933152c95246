"""The DeepSpeed configuration of a hand-off: ours from run.toml, or the user's own, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from partsum.shared.config import HandoffConfig, TrainingConfig
from partsum.shared.errors import ConfigError
from partsum.shared.zero.settings import (
    ACCUMULATION,
    MICRO,
    TRAIN,
    DeepSpeedSettings,
    ZeroTerms,
    zero_settings,
)

REPLACED = (
    "handoff.batch_size, handoff.learning_rate, handoff.zero_stage, handoff.offload, "
    "handoff.precision, training.learning_rate, training.weight_decay, training.betas, "
    "training.gradient_clip"
)
"""What a JSON file of the user's own decides in place of run.toml."""


def deepspeed_settings(
    handoff: HandoffConfig, training: TrainingConfig, elements: int = 0, on_gpu: bool = False
) -> DeepSpeedSettings:
    """The configuration of a hand-off on ``handoff.local_world_size`` ranks.

    ``elements`` is the model's number of parameters, which the buckets are fitted to.

    Raises:
        ConfigError: the batch does not split over the ranks, or the user's JSON cannot be used.
    """
    if handoff.deepspeed_config is not None:
        return _users_settings(Path(handoff.deepspeed_config), handoff.local_world_size)
    ranks, batch = handoff.local_world_size, handoff.batch_size
    if batch % ranks:
        raise ConfigError(
            f"handoff.batch_size = {batch} does not split over handoff.local_world_size = {ranks} "
            f"ranks; {batch + ranks - batch % ranks} would"
        )
    return zero_settings(zero_terms(handoff, training, ranks), elements, on_gpu)


def zero_terms(handoff: HandoffConfig, training: TrainingConfig, ranks: int) -> ZeroTerms:
    """What run.toml asks of DeepSpeed on so many ranks."""
    return ZeroTerms(
        ranks=ranks,
        micro_batch=handoff.batch_size // ranks,
        learning_rate=handoff.learning_rate or training.learning_rate,
        weight_decay=training.weight_decay,
        betas=training.betas,
        gradient_clip=training.gradient_clip,
        stage=handoff.zero_stage,
        offload=handoff.offload,
        precision=handoff.precision,
    )


def _users_settings(path: Path, world_size: int) -> DeepSpeedSettings:
    values = _read_object(path)
    sizes = {key: values[key] for key in (TRAIN, MICRO, ACCUMULATION) if key in values}
    for key, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ConfigError(f"{path}: {key} is {size!r}; it has to be a whole number above 0")
    if TRAIN not in sizes and MICRO not in sizes:
        raise ConfigError(f"{path} sets neither {TRAIN} nor {MICRO}; set one of them")
    if not isinstance(values.get("optimizer"), dict):
        raise ConfigError(
            f'{path} has no "optimizer"; add one, such as '
            '{"type": "AdamW", "params": {"lr": 0.001, "torch_adam": true}}'
        )
    accumulation = sizes.get(ACCUMULATION)
    if accumulation is None:
        both = TRAIN in sizes and MICRO in sizes
        accumulation = max(1, sizes[TRAIN] // (sizes[MICRO] * world_size)) if both else 1
    micro = sizes.get(MICRO) or max(1, sizes[TRAIN] // (accumulation * world_size))
    product = micro * accumulation * world_size
    if sizes.get(TRAIN, product) != product:
        raise ConfigError(
            f"{path}: {TRAIN} is {sizes[TRAIN]}, but {micro} samples a rank ({MICRO}) x "
            f"{accumulation} ({ACCUMULATION}) x {world_size} ranks (handoff.local_world_size) "
            f"makes {product}; they have to agree"
        )
    return DeepSpeedSettings(values, micro, accumulation, world_size)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"handoff.deepspeed_config: cannot read {path}: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"handoff.deepspeed_config: {path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"handoff.deepspeed_config: {path} holds {type(values).__name__}, not a JSON object"
        )
    return values
