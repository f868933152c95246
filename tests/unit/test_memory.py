from __future__ import annotations

import subprocess
import sys

import torch

from partsum.shared.memory import peak_memory_bytes, peak_resident_bytes

SAY = "from partsum.shared.memory import peak_resident_bytes as p; print(p())"


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    held = bytearray(600 << 20)
    held[::4096] = bytes([1]) * len(range(0, len(held), 4096))  # each page is touched
    own = peak_resident_bytes()
    child = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    assert own > len(held)
    assert 10 << 20 < int(child.stdout) < len(held)


def test_what_was_given_back_still_counts() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(before // 4 + (64 << 18))
    del held
    assert peak_memory_bytes(torch.device("cpu")) > before
