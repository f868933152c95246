"""The DeepSpeed configuration that partsum makes of a hand-off's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

TRAIN = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"
_SMALLEST_BUCKET = 100_000  # elements
_LARGEST_BUCKET = 50_000_000  # elements: 200 MB in float32; DeepSpeed's default is 2 GB


@dataclass(frozen=True)
class ZeroTerms:
    """What DeepSpeed is asked for; see HandoffConfig and TrainingConfig for each field's meaning.

    A rank sees ``micro_batch`` samples in a forward pass, and ``accumulation`` passes make a step.
    """

    ranks: int
    micro_batch: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    gradient_clip: float
    stage: Literal[0, 1, 2, 3]
    offload: bool
    precision: Literal["float32", "bfloat16"]
    accumulation: int = 1


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


def zero_settings(terms: ZeroTerms, elements: int = 0, on_gpu: bool = False) -> DeepSpeedSettings:
    """The configuration for these terms.

    ``elements`` is the model's number of parameters, which the buckets are fitted to.
    """
    values: dict[str, Any] = {
        TRAIN: terms.micro_batch * terms.accumulation * terms.ranks,
        MICRO: terms.micro_batch,
        ACCUMULATION: terms.accumulation,
        "optimizer": _optimizer(terms),
        "gradient_clipping": terms.gradient_clip,  # always said: left out, DeepSpeed takes 1.0
        "zero_optimization": _zero(terms, elements, on_gpu),
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 30,
    }
    if terms.precision == "bfloat16":
        # Not bf16.enabled, which casts the whole model: BatchNorm and float inputs fail on it.
        values["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return DeepSpeedSettings(values, terms.micro_batch, terms.accumulation, terms.ranks)


def _zero(terms: ZeroTerms, elements: int, on_gpu: bool) -> dict[str, Any]:
    if terms.stage == 0:
        return {"stage": 0}
    # The default buckets hold 5e8 elements each, more than most models that are handed over.
    bucket = min(max(elements // 4, _SMALLEST_BUCKET), _LARGEST_BUCKET)
    gather = "stage3_prefetch_bucket_size" if terms.stage == 3 else "allgather_bucket_size"
    zero: dict[str, Any] = {
        "stage": terms.stage,
        "reduce_bucket_size": bucket,
        gather: bucket,
        "overlap_comm": on_gpu,
    }
    if terms.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    return zero


def _optimizer(terms: ZeroTerms) -> dict[str, Any]:
    params = {
        "lr": terms.learning_rate,
        "betas": list(terms.betas),
        "eps": 1e-8,
        "weight_decay": terms.weight_decay,
    }
    if not (terms.offload and terms.stage):
        params["torch_adam"] = True  # DeepSpeed's FusedAdam would be compiled on first use
    return {"type": "AdamW", "params": params}
