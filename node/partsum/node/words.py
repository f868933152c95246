"""What goes wrong in training, in words for a person."""

from __future__ import annotations

import torch


def out_of_memory(device: torch.device | None, batch_size: int, error: BaseException) -> str:
    """Where memory ran out, and what would fit; the device's cache is let go."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    first_line = (str(error) or "the host has no memory left").splitlines()[0]
    return (
        f"out of memory on {device} at batch size {batch_size}: {first_line} A smaller "
        "training.batch_size, more parts, or a smaller share for this node will fit"
    )


def training_failed(error: Exception) -> str:
    """What the task, or torch, raised."""
    words = f"training failed: {type(error).__name__}: {error}"
    if "deterministic" in str(error):
        words += ". Set deterministic = false in run.toml to train without that promise"
    return words
