"""The learning rate over a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partsum.shared.schedule import handoff_rate, rate

progress = st.floats(0, 1)
warmups = st.sampled_from([0.0, 0.01, 0.1, 0.5])


@given(progress, warmups)
def test_a_rate_is_between_nothing_and_the_peak(at: float, warmup: float) -> None:
    assert 0 <= rate(at, warmup) <= 1


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.5])
def test_a_rate_peaks_after_the_warm_up_and_ends_at_zero(warmup: float) -> None:
    assert rate(warmup, warmup) == pytest.approx(1)
    assert rate(1.0, warmup) == pytest.approx(0, abs=1e-12)
    assert rate(1.5, warmup) == pytest.approx(0, abs=1e-12)


def test_a_rate_rises_in_the_warm_up_and_falls_after_it() -> None:
    values = [rate(step / 100, 0.1) for step in range(101)]
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[0] > 0  # the first step is not lost


@given(progress, progress, warmups)
def test_the_hand_off_never_goes_above_the_runs_rate(
    at: float, share: float, warmup: float
) -> None:
    at = max(at, share)
    assert 0 <= handoff_rate(at, share, warmup) <= rate(at, warmup) + 1e-12


def test_the_hand_off_ramps_up_and_then_follows_the_runs_rate() -> None:
    assert handoff_rate(0.25, 0.25, 0.1) < 0.01
    assert handoff_rate(0.25 + 0.075, 0.25, 0.1) == rate(0.325, 0.1)
    assert handoff_rate(0.9, 0.25, 0.1) == rate(0.9, 0.1)
    assert handoff_rate(0.25, 0.25, 0.0) == rate(0.25, 0.0)
