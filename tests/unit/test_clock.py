"""Seconds of a run come from a clock that nobody can set, and go on over restarts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from partsum.coordinator.clock import RunClock
from partsum.coordinator.folder import new_run, unfinished_run
from partsum.coordinator.store import Store
from partsum.shared.config import parse_config


class Hand:
    """A clock that stands where a test puts it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("jump", [3600.0 * 24 * 365, -3600.0 * 24 * 365])
def test_a_jump_of_the_wall_clock_changes_no_duration(jump: float) -> None:
    steady, wall = Hand(500.0), Hand(1e9)
    clock = RunClock(1e9, 0.0, steady, wall)
    steady.seconds += 10
    assert clock.now() == 10
    wall.seconds += jump
    assert clock.now() == 10
    steady.seconds += 5
    assert clock.now() == 15


def test_dates_are_those_of_the_wall_clock() -> None:
    steady, wall = Hand(500.0), Hand(1e9)
    clock = RunClock(1e9, 0.0, steady, wall)
    wall.seconds += 90
    assert clock.dates() == ("2001-09-09T01:46:40+00:00", "2001-09-09T01:48:10+00:00")


@pytest.mark.parametrize("break_seconds", [0.0, 1e7, -1e7])
def test_a_resumed_run_goes_on_counting_where_the_journal_ends(
    tmp_path: Path, break_seconds: float
) -> None:
    """Whatever the wall clock says of the time between, and whatever a reboot did to the other."""
    with closing(Store(tmp_path)) as store:
        clock = RunClock(1e9, store.seconds(), Hand(7.0), Hand(1e9))
        assert clock.now() == 0
        store.note_event(12.5, "gone", "the connection ended")
    with closing(Store(tmp_path)) as store:
        clock = RunClock(1e9, store.seconds(), steady := Hand(3.0), Hand(1e9 + break_seconds))
        steady.seconds += 2
        assert clock.now() == 14.5
        store.note(served=clock.now())
    with closing(Store(tmp_path)) as store:
        assert store.seconds() == 14.5


def test_the_newest_run_is_the_one_made_last_whatever_the_clock_said(tmp_path: Path) -> None:
    text = f'folder = "{tmp_path}"'
    config = parse_config(text)
    for made_at in (2e9, 1e9):  # the clock was put back between the two
        with closing(new_run(config, text, made_at)) as store:
            newest = store.folder
    found = unfinished_run(config)
    assert found is not None
    assert found.resolve() == newest.resolve()
