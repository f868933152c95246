"""The DeepSpeed configuration of a hand-off: ours from run.toml, or the user's own, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partsum.shared.config import HandoffConfig, TrainingConfig
from partsum.shared.errors import ConfigError

REPLACED = (
    "handoff.batch_size, handoff.learning_rate, handoff.zero_stage, handoff.offload, "
    "handoff.precision, training.learning_rate, training.weight_decay, training.betas, "
    "training.gradient_clip"
)
"""What a JSON file of the user's own decides in place of run.toml."""

_TRAIN = "train_batch_size"
_MICRO = "train_micro_batch_size_per_gpu"
_ACCUMULATION = "gradient_accumulation_steps"
_SMALLEST_BUCKET = 100_000  # elements
_LARGEST_BUCKET = 50_000_000  # elements: 200 MB in float32; DeepSpeed's default is 2 GB


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A configuration that DeepSpeed will take, and what the training loop must know of it."""

    values: dict[str, Any]
    micro_batch: int  # samples of one rank in one forward pass
    accumulation: int  # forward passes of a step
    world_size: int

    @property
    def batch_size(self) -> int:
        """Samples in a global batch."""
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def offloads(self) -> bool:
        """Whether the optimizer lives in host memory, which needs DeepSpeed's CPUAdam."""
        return "offload_optimizer" in self.values.get("zero_optimization", {})


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
    values: dict[str, Any] = {
        _TRAIN: batch,
        _MICRO: batch // ranks,
        _ACCUMULATION: 1,
        "optimizer": _optimizer(handoff, training),
        "gradient_clipping": training.gradient_clip,  # always said: left out, DeepSpeed takes 1.0
        "zero_optimization": _zero(handoff, elements, on_gpu),
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 30,
    }
    if handoff.precision == "bfloat16":
        # Not bf16.enabled, which casts the whole model: BatchNorm and float inputs fail on it.
        values["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return DeepSpeedSettings(values, batch // ranks, 1, ranks)


def _zero(handoff: HandoffConfig, elements: int, on_gpu: bool) -> dict[str, Any]:
    if handoff.zero_stage == 0:
        return {"stage": 0}
    # The default buckets hold 5e8 elements each, more than most models that are handed over.
    bucket = min(max(elements // 4, _SMALLEST_BUCKET), _LARGEST_BUCKET)
    gather = "stage3_prefetch_bucket_size" if handoff.zero_stage == 3 else "allgather_bucket_size"
    zero: dict[str, Any] = {
        "stage": handoff.zero_stage,
        "reduce_bucket_size": bucket,
        gather: bucket,
        "overlap_comm": on_gpu,
    }
    if handoff.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    return zero


def _optimizer(handoff: HandoffConfig, training: TrainingConfig) -> dict[str, Any]:
    params = {
        "lr": handoff.learning_rate or training.learning_rate,
        "betas": list(training.betas),
        "eps": 1e-8,
        "weight_decay": training.weight_decay,
    }
    if not (handoff.offload and handoff.zero_stage):
        params["torch_adam"] = True  # DeepSpeed's FusedAdam would be compiled on first use
    return {"type": "AdamW", "params": params}


def _users_settings(path: Path, world_size: int) -> DeepSpeedSettings:
    values = _read_object(path)
    sizes = {key: values[key] for key in (_TRAIN, _MICRO, _ACCUMULATION) if key in values}
    for key, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ConfigError(f"{path}: {key} is {size!r}; it has to be a whole number above 0")
    if _TRAIN not in sizes and _MICRO not in sizes:
        raise ConfigError(f"{path} sets neither {_TRAIN} nor {_MICRO}; set one of them")
    if not isinstance(values.get("optimizer"), dict):
        raise ConfigError(
            f'{path} has no "optimizer"; add one, such as '
            '{"type": "AdamW", "params": {"lr": 0.001, "torch_adam": true}}'
        )
    accumulation = sizes.get(_ACCUMULATION)
    if accumulation is None:
        both = _TRAIN in sizes and _MICRO in sizes
        accumulation = max(1, sizes[_TRAIN] // (sizes[_MICRO] * world_size)) if both else 1
    micro = sizes.get(_MICRO) or max(1, sizes[_TRAIN] // (accumulation * world_size))
    product = micro * accumulation * world_size
    if sizes.get(_TRAIN, product) != product:
        raise ConfigError(
            f"{path}: {_TRAIN} is {sizes[_TRAIN]}, but {micro} samples a rank ({_MICRO}) x "
            f"{accumulation} ({_ACCUMULATION}) x {world_size} ranks (handoff.local_world_size) "
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
