"""A model in DeepSpeed's hands, and out of them again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from partsum.shared.errors import HandoffError
from partsum.shared.zero.settings import DeepSpeedSettings


@dataclass(frozen=True)
class Place:
    """Which rank this is, and the device that it has."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """Whether the ranks train on GPUs."""
        return self.device.type == "cuda"


class Engine(Protocol):
    """What is used of DeepSpeed's engine, which has no types of its own."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: object | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """The model's outputs."""

    def train(self) -> None:
        """Put the model into training mode."""

    def eval(self) -> None:
        """Put the model into evaluation mode."""

    def backward(self, loss: Tensor) -> None:
        """Add this micro batch's gradients, over the ranks."""

    def destroy(self) -> None:
        """Let go of the hooks and buffers that it holds."""

    def step(self) -> None:
        """Step the optimizer, after the last micro batch of a batch."""

    def save_checkpoint(
        self, save_dir: str, tag: str, client_state: dict[str, Any], save_latest: bool
    ) -> bool:
        """Write this rank's share of ``save_dir/tag``; all ranks have to call it."""

    def load_checkpoint(self, load_dir: str, tag: str) -> tuple[str | None, dict[str, Any]]:
        """Load this rank's share; returns its path and the client state."""


def start_engine(model: nn.Module, settings: DeepSpeedSettings, place: Place) -> Engine:
    """DeepSpeed's engine around the model, which it moves to its device and shards."""
    import deepspeed  # its import takes a second, and asks which accelerator there is

    _check_ops(settings, place.on_gpu)
    # One word for each rank about what DeepSpeed is to call otherwise, which nobody here can mend.
    warnings.filterwarnings("ignore", r".torch\.distributed\.\w+. is deprecated", FutureWarning)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine: Engine
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=trained, config=settings.values, dist_init_required=False
    )
    return engine


def count_steps(engine: Engine, steps: int) -> None:
    """Let a fresh engine's CPUAdam count up to ``steps``, where a checkpoint then goes on.

    It multiplies its beta powers up from step to step, and takes pow() only where steps were left
    out. The two differ in the last bit: measured, a weight was off by 4e-4 fourteen steps after a
    resume. Steps on empty tensors count, and change nothing.
    """
    adam = getattr(engine, "basic_optimizer", None)
    operation = getattr(adam, "ds_opt_adam", None)
    if adam is None or operation is None:
        return
    group, empty = adam.param_groups[0], torch.empty(0)
    fixed = (*group["betas"], group["eps"], group["weight_decay"], group["bias_correction"])
    for step in range(1, steps + 1):
        operation.adam_update(adam.opt_id, step, 0.0, *fixed, empty, empty, empty, empty)


def _check_ops(settings: DeepSpeedSettings, on_gpu: bool) -> None:
    """Never compile at run time: it takes minutes, and a killed build blocks the next one."""
    from deepspeed.git_version_info import installed_ops

    needed = {"cpu_adam"} if settings.offloads else set()
    missing = (needed if on_gpu else needed | {"deepspeed_shm_comm"}) - {
        op for op, built in installed_ops.items() if built
    }
    if missing:
        raise HandoffError(
            f"DeepSpeed is installed without its compiled {' and '.join(sorted(missing))}; "
            "scripts/build_deepspeed.sh (which `make setup` calls) builds it in a few minutes"
        )


def whole_tensors(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """The state dict of a model that DeepSpeed may have sharded; every rank has to call this.

    Parameters come from the float32 masters where there are any; buffers are this rank's own.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    whole: dict[int, Tensor] = {}  # tied tensors have several names, and are gathered once
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in whole:
            master = safe_get_full_fp32_param(tensor) if tensor.requires_grad else None
            whole[id(tensor)] = (tensor if master is None else master).detach().cpu()
        tensors[name] = whole[id(tensor)].to(dtypes[name])
    return tensors
