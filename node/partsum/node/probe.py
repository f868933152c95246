"""What a device is and can do: its name, its free memory, its measured speed."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import psutil
import torch

from partsum.shared.errors import PartsumError


def choose_device(wish: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        PartsumError: there is no such device here.
    """
    if wish == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if wish == "cpu":
        return torch.device("cpu")
    kind, _, number = wish.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise PartsumError(f"--device {wish!r} is not auto, cpu or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number or 0)
    if index >= count:
        has = f"devices cuda:0 to cuda:{count - 1}" if count else "no CUDA device"
        raise PartsumError(f"--device {wish}: this host has {has}; auto takes what there is")
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """The device for people: "cuda:0 NVIDIA H100", "cpu x86_64"."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu {platform.machine()}"


def free_memory_bytes(device: torch.device) -> int:
    """What training may still take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def measure_gflops(
    device: torch.device,
    seconds: float = 0.2,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Float32 matrix products, 10^9 floating-point operations a second, timed for ``seconds``."""
    size = 2048 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, device=device)
    matrix @ matrix  # the first product pays for the library's start
    _synchronise(device)
    products = 0
    start = clock()
    while (spent := clock() - start) < seconds:
        matrix @ matrix
        _synchronise(device)
        products += 1
    return products * 2 * size**3 / spent / 1e9


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
