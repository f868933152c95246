"""The round machine, driven by hand: no socket, no sleep."""

from __future__ import annotations

from partsum.coordinator import events as e
from partsum.coordinator.rounds import RoundMachine


def settings_for(parts: int = 2, **changes: object) -> e.RoundSettings:
    values: dict[str, object] = {
        "rounds": 2,
        "min_nodes": parts,
        "join_timeout_seconds": 60.0,
        "quorum": 1,
        "deadline_seconds": 100.0,
        "return_seconds": 5.0,
        "refusals": 3,
        "handoff": True,
    }
    return e.RoundSettings(**{**values, **changes})  # type: ignore[arg-type]


def started(machine: RoundMachine, parts: int = 2, now: float = 0.0) -> None:
    """Bring as many nodes as parts, and open the round."""
    for k in range(parts):
        machine.handle(e.NodeReady(f"n{k}"), now)
    machine.handle(e.Planned([""] * parts), now)


def test_a_run_goes_through_rounds_and_hand_off_to_its_end() -> None:
    machine = RoundMachine(settings_for(), 0, 0.0)
    assert machine.handle(e.NodeReady("n0"), 0.0).actions == ()
    assert machine.handle(e.NodeReady("n1"), 1.0).actions == (e.Plan(0),)
    decision = machine.handle(e.Planned(["", ""]), 2.0)
    assert decision.actions == (e.Assign("n0", 0), e.Assign("n1", 1))
    assert decision.reason == "waiting for parts 0, 1 from n0, n1"
    assert machine.handle(e.UpdateIn("n0", 0), 3.0).actions == ()
    assert machine.handle(e.UpdateIn("n1", 1), 4.0).actions == (e.Merge(()),)
    assert machine.handle(e.Merged(), 5.0).actions == (e.Plan(1),)
    machine.handle(e.Planned(["n0", "n1"]), 6.0)
    machine.handle(e.UpdateIn("n1", 1), 7.0)
    machine.handle(e.UpdateIn("n0", 0), 8.0)
    assert machine.handle(e.Merged(), 9.0).actions == (e.Handoff(),)
    assert machine.handle(e.HandoffDone(), 10.0).actions == (e.Finish(),)


def test_fewer_nodes_than_parts_take_several_each_after_the_join_timeout() -> None:
    machine = RoundMachine(settings_for(parts=3), 0, 0.0)
    first = machine.handle(e.NodeReady("n0"), 0.0)
    assert first.actions == ()
    assert first.wake_at == 60.0
    assert machine.handle(e.Tick(), 60.0).actions == (e.Plan(0),)
    assert machine.handle(e.Planned(["", "", ""]), 61.0).actions == (e.Assign("n0", 0),)
    assert machine.handle(e.UpdateIn("n0", 0), 62.0).actions == (e.Assign("n0", 1),)


def test_a_part_goes_first_to_the_node_that_had_it() -> None:
    machine = RoundMachine(settings_for(), 0, 0.0)
    machine.handle(e.NodeReady("n0"), 0.0)
    machine.handle(e.NodeReady("n1"), 0.0)
    actions = machine.handle(e.Planned(["n1", "n0"]), 0.0).actions
    assert actions == (e.Assign("n1", 0), e.Assign("n0", 1))


def test_a_lost_nodes_part_waits_a_little_for_it_and_then_goes_to_another() -> None:
    machine = RoundMachine(settings_for(), 0, 0.0)
    started(machine)
    assert machine.handle(e.UpdateIn("n0", 0), 1.0).actions == ()
    held = machine.handle(e.NodeGone("n1"), 2.0)
    assert held.actions == ()
    assert held.wake_at == 7.0
    assert machine.handle(e.Tick(), 7.0).actions == (e.Assign("n0", 1),)


def test_a_lost_node_that_is_back_in_time_gets_its_own_part_again() -> None:
    machine = RoundMachine(settings_for(), 0, 0.0)
    started(machine)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    machine.handle(e.NodeGone("n1"), 2.0)
    assert machine.handle(e.NodeReady("n1"), 3.0).actions == (e.Assign("n1", 1),)


def test_a_deterministic_run_leaves_a_part_to_its_living_node_though_another_is_idle() -> None:
    for sticky, later in ((True, ()), (False, (e.Assign("n1", 1),))):
        machine = RoundMachine(settings_for(parts=2, sticky=sticky), 1, 0.0)
        for name in ("n0", "n1"):
            machine.handle(e.NodeReady(name), 0.0)
        assert machine.handle(e.Planned(["n0", "n0"]), 0.0).actions == (e.Assign("n0", 0),)
        assert machine.handle(e.Tick(), 50.0).actions == later


def test_a_deterministic_run_tries_a_failed_part_again_where_its_moments_are() -> None:
    machine = RoundMachine(settings_for(sticky=True), 0, 0.0)
    started(machine)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    for now in (2.0, 3.0):
        decision = machine.handle(e.JobFailed("n1", 1, "its worker was killed"), now)
        assert decision.actions == (e.Assign("n1", 1),), "n0 is idle, but has no moments of it"
    last = machine.handle(e.JobFailed("n1", 1, "its worker was killed"), 4.0)
    assert last.actions == (e.Assign("n0", 1),)


def test_a_node_that_reconnects_unseen_is_sent_its_assignment_again() -> None:
    machine = RoundMachine(settings_for(), 0, 0.0)
    started(machine)
    assert machine.handle(e.NodeReady("n1"), 1.0).actions == (e.Assign("n1", 1),)


def test_the_first_update_of_a_part_counts_and_the_slower_node_is_told() -> None:
    machine = RoundMachine(settings_for(), 0, 0.0)
    started(machine)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    machine.handle(e.NodeGone("n1"), 2.0)
    machine.handle(e.Tick(), 7.0)  # n0 has part 1 now
    actions = machine.handle(e.UpdateIn("n1", 1), 8.0).actions
    assert actions == (e.Cancel("n0", 1, "n1 delivered it first"), e.Merge(()))
    assert machine.handle(e.UpdateIn("n0", 1), 9.0).actions == ()


def test_a_round_past_its_deadline_closes_with_a_quorum_and_says_what_is_missing() -> None:
    machine = RoundMachine(settings_for(), 0, 0.0)
    started(machine)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    actions = machine.handle(e.Tick(), 100.0).actions
    assert actions == (e.Cancel("n1", 1, "the round's deadline has passed"), e.Merge((1,)))


def test_a_round_past_its_deadline_without_a_quorum_waits_and_says_so() -> None:
    machine = RoundMachine(settings_for(quorum=2), 0, 0.0)
    started(machine)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    late = machine.handle(e.Tick(), 100.0)
    assert late.actions == ()
    assert late.reason.endswith("only 1 of 2 updates of the quorum are in")


def test_a_node_that_fails_too_often_gets_no_more_work() -> None:
    machine = RoundMachine(settings_for(refusals=2), 0, 0.0)
    started(machine)
    again = machine.handle(e.JobFailed("n1", 1, "out of memory"), 1.0)
    assert again.actions == ()  # n0 has not tried it yet, and is busy
    actions = machine.handle(e.UpdateIn("n0", 0), 2.0).actions
    assert actions == (e.Assign("n0", 1),)
    machine.handle(e.JobFailed("n0", 1, "out of memory"), 3.0)
    assert machine.jobs[1].state == "assigned"  # both failed it once: somebody tries again


def test_a_run_whose_nodes_all_fail_ends_with_the_last_reason() -> None:
    machine = RoundMachine(settings_for(parts=1, refusals=2), 0, 0.0)
    started(machine, parts=1)
    assert machine.handle(e.JobFailed("n0", 0, "no such file"), 1.0).actions == (e.Assign("n0", 0),)
    actions = machine.handle(e.JobFailed("n0", 0, "no such file"), 2.0).actions
    assert actions == (e.Fail("every node failed; the last one said: n0: no such file"),)


def test_nodes_that_were_benched_in_the_round_before_are_still_quoted() -> None:
    machine = RoundMachine(settings_for(refusals=2), 0, 0.0)
    started(machine)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    for node in ("n1", "n0", "n0"):
        machine.handle(e.JobFailed(node, 1, "out of memory"), 2.0)
    closed = machine.handle(e.JobFailed("n1", 1, "out of memory"), 3.0)
    assert closed.actions == (e.Merge((1,)),)
    assert machine.handle(e.Merged(), 4.0).actions == (e.Plan(1),)
    actions = machine.handle(e.Planned(["", ""]), 5.0).actions
    assert actions == (e.Fail("every node failed; the last one said: n1: out of memory"),)


def test_a_node_whose_older_update_is_refused_keeps_the_part_that_it_has() -> None:
    machine = RoundMachine(settings_for(parts=3, refusals=2, min_nodes=1), 0, 0.0)
    machine.handle(e.NodeReady("n0"), 0.0)
    assert machine.handle(e.Planned(["", "", ""]), 0.0).actions == (e.Assign("n0", 0),)
    assert machine.handle(e.JobFailed("n0", 2, "damaged"), 1.0).actions == ()
    assert machine.members["n0"].state == "busy"
    assert machine.handle(e.UpdateIn("n0", 0), 2.0).actions == (e.Assign("n0", 1),)


def test_a_node_that_is_benched_for_an_older_update_gives_its_part_to_others() -> None:
    machine = RoundMachine(settings_for(refusals=1), 0, 0.0)
    started(machine)
    machine.handle(e.JobFailed("n1", 0, "damaged"), 1.0)
    assert machine.handle(e.UpdateIn("n0", 0), 2.0).actions == (e.Assign("n0", 1),)


def test_after_a_restart_updates_that_were_in_are_not_asked_for_again() -> None:
    machine = RoundMachine(settings_for(), 1, 0.0)
    machine.handle(e.NodeReady("n0"), 0.0)
    assert machine.handle(e.NodeReady("n1"), 0.0).actions == (e.Plan(1),)
    assert machine.handle(e.Planned(["n0", "n1"], done=[0]), 0.0).actions == (e.Assign("n1", 1),)


def test_with_no_rounds_the_base_goes_straight_to_the_hand_off() -> None:
    machine = RoundMachine(settings_for(rounds=0), 0, 0.0)
    assert machine.handle(e.Tick(), 0.0).actions == (e.Handoff(),)


def test_a_round_of_hundreds_names_some_parts_and_nodes_and_how_many_more_there_are() -> None:
    machine = RoundMachine(settings_for(300), 0, 0.0)
    for k in range(300):
        machine.handle(e.NodeReady(f"n{k:03}"), 0.0)
    opened = machine.handle(e.Planned([""] * 300), 0.0)
    assert opened.actions == tuple(e.Assign(f"n{k:03}", k) for k in range(300))
    assert opened.reason == (
        "waiting for parts 0, 1, 2, 3, 4, 5, 6, 7 and 292 more from "
        "n000, n001, n002, n003, n004, n005, n006, n007 and 292 more"
    )
    for k in range(295):
        last = machine.handle(e.UpdateIn(f"n{k:03}", k), 1.0)
    names = "n295, n296, n297, n298, n299"
    assert last.reason == f"waiting for parts 295, 296, 297, 298, 299 from {names}"
