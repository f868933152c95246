"""Differential privacy through the real server: clipped, noisy, counted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from tests.hand_node import played

from partsum.coordinator.privacy import epsilon
from partsum.shared.config import PrivacyConfig
from partsum.shared.tensors import load_tensors

PRIVACY = PrivacyConfig(noise_multiplier=0.5, clip_norm=2.0)
SECTION = "privacy = {{ noise_multiplier = 0.5, clip_norm = 2.0 }}\n"


def test_every_update_is_clipped_and_the_noise_is_as_large_as_promised(tmp_path: Path) -> None:
    """Three nodes move all weights the same way, one of them 500 times as far as the others."""
    summary, heard = played(tmp_path, 2, liar_by=5.0, more=SECTION)
    assert not any(round.refused for round in summary.rounds)  # nobody is judged by the others
    assert [kinds.count("assignment") for kinds in heard] == [2, 2, 2]
    assert summary.privacy_epsilon == pytest.approx(epsilon(PRIVACY, 2))
    assert "of each cluster" in (tmp_path / "latest" / "report.html").read_text()
    bases = sorted((tmp_path / "latest" / "bases").glob("base-*"))
    assert len(bases) == 3
    for old, new in pairwise(bases):
        before, after = load_tensors(old), load_tensors(new)
        change = [(after[name] - before[name]).double().flatten() for name in sorted(before)]
        weights = sum(len(part) for part in change)
        # 0.01 a weight has a norm of less than 2 and is not clipped; 5.0 is.
        clipped = 2.0 / weights**0.5
        mean = sum(float(part.sum()) for part in change) / weights
        assert mean == pytest.approx((0.01 + 0.01 + clipped) / 3, abs=4 * (1 / 3) / weights**0.5)
        spread = sum(float(((part - mean) ** 2).sum()) for part in change) / weights
        assert spread**0.5 == pytest.approx(0.5 * 2.0 / 3, rel=0.1)
