"""The round machine where a part is its node's alone, as secure aggregation needs it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from partsum.coordinator import events as e
from partsum.coordinator.rounds import RoundMachine
from partsum.coordinator.terms import round_settings
from partsum.shared.config import parse_config
from partsum.shared.errors import ConfigError

SETTINGS = e.RoundSettings(
    rounds=2,
    min_nodes=4,
    join_timeout_seconds=60.0,
    quorum=2,
    deadline_seconds=100.0,
    return_seconds=5.0,
    refusals=3,
    handoff=False,
    backup_after=2.0,
    pinned=True,
    least=3,
)
NODES = ["n0", "n1", "n2", "n3"]


def opened(holders: list[str] | None = None) -> RoundMachine:
    """Four nodes at work on a round in which three updates are needed."""
    machine = RoundMachine(SETTINGS, 0, 0.0)
    for node in NODES:
        machine.handle(e.NodeReady(node), 0.0)
    machine.handle(e.Planned(holders or NODES, needed=3), 0.0)
    return machine


def deliver(machine: RoundMachine, *nodes: str, now: float = 1.0) -> e.Decision:
    for node in nodes:
        decision = machine.handle(e.UpdateIn(node, NODES.index(node)), now)
    return decision


def test_each_node_gets_its_own_part_and_no_second_copy() -> None:
    machine = RoundMachine(SETTINGS, 0, 0.0)
    for node in NODES:
        machine.handle(e.NodeReady(node), 0.0)
    given = machine.handle(e.Planned(["n2", "n0", "n3", "n1"], needed=3), 0.0).actions
    assert set(given) == {e.Assign(n, k) for k, n in enumerate(["n2", "n0", "n3", "n1"])}
    for part, node in ((0, "n2"), (1, "n0"), (2, "n3")):
        assert machine.handle(e.UpdateIn(node, part), 1.0).actions == ()
    assert machine.handle(e.Tick(), 99.0).actions == ()


def test_a_lost_nodes_part_is_left_out_once_it_did_not_return() -> None:
    machine = opened()
    deliver(machine, "n0", "n1", "n2")
    waits = machine.handle(e.NodeGone("n3"), 2.0)
    assert waits.actions == ()
    assert waits.wake_at == 7.0
    assert waits.reason == "waiting for part 3; n3 may still come back"
    assert machine.handle(e.Tick(), 7.0).actions == (e.Merge((3,)),)


def test_a_node_that_returns_goes_on_with_its_part_even_late() -> None:
    machine = opened()
    machine.handle(e.NodeGone("n3"), 1.0)
    machine.handle(e.Tick(), 6.0)
    assert machine.jobs[3].state == "out"
    assert machine.handle(e.NodeReady("n3"), 20.0).actions == (e.Assign("n3", 3),)
    deliver(machine, "n0", "n1", "n2", now=21.0)
    assert deliver(machine, "n3", now=22.0).actions == (e.Merge(()),)


def test_an_update_that_comes_late_still_counts() -> None:
    machine = opened()
    machine.handle(e.NodeGone("n3"), 1.0)
    machine.handle(e.Tick(), 6.0)
    machine.handle(e.UpdateIn("n3", 3), 7.0)
    assert deliver(machine, "n0", "n1", "n2", now=8.0).actions == (e.Merge(()),)


def test_a_part_that_failed_goes_to_nobody() -> None:
    machine = opened()
    assert machine.handle(e.JobFailed("n1", 1, "out of memory"), 1.0).actions == ()
    assert deliver(machine, "n0", "n2", "n3").actions == (e.Merge((1,)),)


def test_where_too_few_are_left_the_round_is_opened_again_with_those_who_are_there() -> None:
    machine = opened()
    deliver(machine, "n0", "n1")
    for node in ("n2", "n3"):
        machine.handle(e.NodeGone(node), 2.0)
    waits = machine.handle(e.Tick(), 7.0)
    assert waits.actions == ()
    assert waits.reason == "waiting for nodes: 2 of 3 are ready"
    assert machine.handle(e.NodeReady("n3"), 8.0).actions == (e.Plan(0),)
    machine.handle(e.Planned(["n0", "n1", "", "n3"], needed=2), 9.0)
    assert machine.jobs[2].state == "out"
    assert deliver(machine, "n0", "n1", "n3").actions == (e.Merge((2,)),)


def test_a_deadline_closes_the_round_only_with_enough_to_take_the_masks_off() -> None:
    machine = opened()
    deliver(machine, "n0", "n1")
    late = machine.handle(e.Tick(), 100.0)
    assert late.actions == ()
    assert late.reason.endswith("only 2 of 3 updates of the quorum are in")
    closed = machine.handle(e.UpdateIn("n2", 2), 101.0).actions
    assert closed[-1] == e.Merge((3,))
    assert closed[0] == e.Cancel("n3", 3, "the round's deadline has passed")


@pytest.mark.parametrize("done", [0, 3])
def test_a_session_that_lapses_opens_the_round_again(done: int) -> None:
    machine = opened()
    if done:
        deliver(machine, *NODES[:done])
        machine.handle(e.NodeGone("n3"), 2.0)
        assert machine.handle(e.Tick(), 8.0).actions == (e.Merge((3,)),)
    assert machine.handle(e.Lapsed("too few answered"), 9.0).actions == (e.Plan(0),)
    assert machine.parts_in() == 0


def test_updates_whose_masks_are_known_need_no_node() -> None:
    machine = opened(["", "", "", ""])
    assert machine.handle(e.Planned([""] * 4, [0, 1, 2], needed=3), 1.0).actions == (e.Merge((3,)),)


def test_the_next_round_waits_for_as_many_nodes_as_protect_each_other() -> None:
    machine = opened()
    deliver(machine, *NODES)
    for node in ("n0", "n1"):
        machine.handle(e.NodeGone(node), 2.0)
    merged = machine.handle(e.Merged(), 3.0)
    assert (merged.actions, machine.phase) == ((), "waiting")
    assert machine.handle(e.NodeReady("n1"), 4.0).actions == (e.Plan(1),)


def test_a_run_whose_nodes_all_fail_ends_also_here() -> None:
    machine = RoundMachine(replace(SETTINGS, min_nodes=3, refusals=1), 0, 0.0)
    for node in NODES[:3]:
        machine.handle(e.NodeReady(node), 0.0)
    machine.handle(e.Planned(NODES[:3], needed=2), 0.0)
    for part, node in enumerate(NODES[:3]):
        decision = machine.handle(e.JobFailed(node, part, "no such file"), 1.0)
    assert decision.actions == (e.Fail("every node failed; the last one said: n2: no such file"),)


def test_the_config_says_how_many_nodes_protect_each_other() -> None:
    config = parse_config(
        '[parts]\nplanner = "full"\ncount = 10\n[privacy]\nsecure_aggregation = true\n'
    )
    settings = round_settings(config)
    assert (settings.pinned, settings.least, settings.min_nodes) == (True, 5, 10)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('[parts]\nplanner = "complement"\nmode = "residual"', 'parts.planner is "complement"'),
        ('[parts]\nplanner = "full"\ncount = 2', "parts.count is 2"),
        ('[parts]\nplanner = "full"\n[rounds]\nmin_nodes = 2', "rounds.min_nodes is 2"),
        ('[parts]\nplanner = "full"\n[merge]\nrule = "median"', 'merge.rule is "median"'),
    ],
)
def test_a_config_in_which_masks_hide_nothing_is_refused(change: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"privacy.secure_aggregation: {reason}"):
        parse_config(f"{change}\n[privacy]\nsecure_aggregation = true\n")
