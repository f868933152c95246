"""A node's part of the hand-off: what is kept between two rounds of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(200)
def test_two_stretches_of_the_hand_off_end_with_the_bits_of_one(tmp_path: Path) -> None:
    """In a process of its own: DeepSpeed and torch's world would stay in this one."""
    script = Path(__file__).with_name("zero_stretches.py")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    said = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=environment,
    )
    assert said.returncode == 0, said.stderr[-3000:]
    lines = [line for line in said.stdout.splitlines() if line.startswith("stage=")]
    assert len(lines) == 4
    assert "kept ['p0-s2.safetensors']" in said.stdout
    assert all("same=True moved=True" in line for line in lines), lines
    assert "without DeepSpeed's moments" not in said.stderr
