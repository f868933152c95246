"""How much memory a process has taken."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_resident_bytes() -> int:
    """The most memory that this process has held resident, as the kernel counted it.

    ``ru_maxrss`` is for systems that do not say it in /proc: on Linux it begins with what the
    process held that this one was started from, be it gigabytes.
    """
    lines = _STATUS.read_text(encoding="utf-8").splitlines() if _STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that training took: of the GPU's, or of this whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
