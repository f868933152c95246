"""Second copies of slow parts: to whom, when, and whose update counts."""

from __future__ import annotations

from partsum.coordinator import events as e
from partsum.coordinator.rounds import RoundMachine


def machine_of(parts: int, **changes: object) -> RoundMachine:
    """A machine in its first round, each part with a node of its own: part 0 with n0, ..."""
    values: dict[str, object] = {
        "rounds": 2,
        "min_nodes": parts,
        "join_timeout_seconds": 60.0,
        "quorum": parts,
        "deadline_seconds": 1000.0,
        "return_seconds": 5.0,
        "refusals": 3,
        "handoff": False,
        "backup_after": 2.0,
    }
    machine = RoundMachine(e.RoundSettings(**{**values, **changes}), 0, 0.0)  # type: ignore[arg-type]
    for k in range(parts):
        machine.handle(e.NodeReady(f"n{k}"), 0.0)
    given = machine.handle(e.Planned([""] * parts), 0.0).actions
    assert given == tuple(e.Assign(f"n{k}", k) for k in range(parts))
    return machine


def with_a_slow_part() -> RoundMachine:
    """Of four parts the first two are in after 10 s, by n0 and n1; n0 has a second copy of 2."""
    machine = machine_of(4)
    assert machine.handle(e.UpdateIn("n0", 0), 10.0).actions == ()
    waits = machine.handle(e.UpdateIn("n1", 1), 10.0)
    assert (waits.actions, waits.wake_at) == ((), 20.0)
    second = machine.handle(e.Tick(), 20.0).actions
    assert second == (e.Assign("n0", 2), e.Assign("n1", 3))
    return machine


def test_no_second_copy_is_given_before_half_of_the_parts_are_in() -> None:
    machine = machine_of(4)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    assert machine.handle(e.Tick(), 500.0).actions == ()
    assert machine.handle(e.UpdateIn("n1", 1), 500.0).actions == ()  # the median is 250 s now
    assert machine.handle(e.Tick(), 502.0).actions == (e.Assign("n0", 2), e.Assign("n1", 3))


def test_a_second_copy_goes_to_an_idle_node_once_a_part_takes_twice_the_median() -> None:
    machine = with_a_slow_part()
    assert machine.jobs[2].holders() == ["n2", "n0"]
    assert machine.handle(e.Tick(), 30.0).actions == ()  # never a third


def test_no_second_copy_is_given_where_backup_after_is_zero_or_moments_stay_with_nodes() -> None:
    for changes in ({"backup_after": 0.0}, {"sticky": True}):
        machine = machine_of(4, **changes)
        machine.handle(e.UpdateIn("n0", 0), 10.0)
        machine.handle(e.UpdateIn("n1", 1), 10.0)
        assert machine.handle(e.Tick(), 500.0).actions == ()


def test_a_part_that_nobody_has_comes_before_second_copies() -> None:
    machine = machine_of(4)
    machine.handle(e.UpdateIn("n0", 0), 10.0)
    machine.handle(e.UpdateIn("n1", 1), 10.0)
    machine.handle(e.NodeGone("n3"), 18.0)
    assert machine.handle(e.Tick(), 20.0).actions == ()  # part 3 is kept for n3 until 23
    assert machine.handle(e.Tick(), 23.0).actions == (e.Assign("n0", 3), e.Assign("n1", 2))


def test_no_second_copy_goes_to_a_node_that_failed_the_part() -> None:
    machine = machine_of(2)
    machine.handle(e.NodeReady("n2"), 0.0)
    assert machine.handle(e.JobFailed("n0", 0, "damaged"), 1.0).actions == (e.Assign("n2", 0),)
    machine.handle(e.UpdateIn("n1", 1), 2.0)
    machine.handle(e.NodeGone("n1"), 3.0)
    assert machine.handle(e.Tick(), 500.0).actions == ()  # n0 alone is idle
    assert machine.handle(e.NodeReady("n1"), 501.0).actions == (e.Assign("n1", 0),)


def test_the_first_copy_to_be_delivered_counts_and_the_other_is_cancelled() -> None:
    for winner, loser in (("n0", "n2"), ("n2", "n0")):
        machine = with_a_slow_part()
        actions = machine.handle(e.UpdateIn(winner, 2), 21.0).actions
        assert actions[0] == e.Cancel(loser, 2, f"{winner} delivered it first")
        assert machine.handle(e.UpdateIn(loser, 2), 22.0).actions == ()
        assert machine.parts_in() == 3
        assert machine.jobs[2].node == winner


def test_the_second_copy_takes_the_place_of_a_first_that_is_lost() -> None:
    for event in (e.NodeGone("n2"), e.JobFailed("n2", 2, "out of memory")):
        machine = with_a_slow_part()
        assert e.Assign("n0", 2) not in machine.handle(event, 21.0).actions  # it has it already
        assert machine.jobs[2].holders() == ["n0"]
        machine.handle(e.UpdateIn("n0", 2), 22.0)
        assert machine.jobs[2].state == "in"


def test_a_first_copy_goes_on_where_the_second_is_lost() -> None:
    machine = with_a_slow_part()
    assert machine.handle(e.NodeGone("n0"), 21.0).actions == ()
    assert machine.jobs[2].holders() == ["n2"]


def test_a_part_whose_two_copies_are_lost_is_given_to_a_third_node() -> None:
    machine = with_a_slow_part()
    machine.handle(e.NodeGone("n2"), 21.0)
    machine.handle(e.NodeGone("n0"), 22.0)
    assert machine.jobs[2].state == "pending"
    machine.handle(e.UpdateIn("n3", 3), 23.0)
    assert machine.handle(e.Tick(), 27.0).actions == (e.Assign("n1", 2),)


def test_a_part_is_not_kept_for_a_node_that_is_back_and_failed_it() -> None:
    machine = machine_of(2)
    machine.handle(e.JobFailed("n0", 0, "damaged"), 1.0)
    machine.handle(e.NodeGone("n1"), 2.0)  # n0 is the only one: it tries part 0 again
    machine.handle(e.NodeGone("n0"), 3.0)
    assert e.Assign("n0", 0) in machine.handle(e.NodeReady("n0"), 4.0).actions


def test_a_node_that_returns_in_mid_round_may_still_deliver() -> None:
    machine = with_a_slow_part()
    machine.handle(e.NodeGone("n2"), 21.0)  # n0 has part 2 alone now
    assert machine.handle(e.NodeReady("n2"), 60.0).actions == (e.Assign("n2", 2),)
    actions = machine.handle(e.UpdateIn("n2", 2), 61.0).actions
    assert actions[0] == e.Cancel("n0", 2, "n2 delivered it first")


def test_bad_updates_of_several_parts_in_a_round_add_up_when_they_are_withdrawn() -> None:
    machine = RoundMachine(
        e.RoundSettings(1, 1, 60.0, 3, 1000.0, 5.0, refusals=3, handoff=False), 0, 0.0
    )
    machine.handle(e.NodeReady("liar"), 0.0)
    machine.handle(e.Planned([""] * 3), 0.0)
    for part in range(3):
        machine.handle(e.UpdateIn("liar", part), 1.0)
    assert machine.phase == "merging"
    for part in range(3):
        assert not machine.is_benched("liar")
        machine.handle(e.Withdrawn("liar", part, "it stands out"), 2.0)
    assert machine.is_benched("liar")


def test_a_withdrawn_part_goes_to_another_node_at_once() -> None:
    machine = machine_of(2)
    machine.handle(e.UpdateIn("n1", 1), 1.0)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    actions = machine.handle(e.Withdrawn("n0", 0, "it stands out"), 2.0).actions
    assert actions == (e.Assign("n1", 0),)


def test_one_that_never_said_ready_gets_no_work_for_a_word_of_an_older_life() -> None:
    machine = machine_of(2, min_nodes=1)
    machine.handle(e.NodeGone("n1"), 1.0)
    machine.handle(e.UpdateIn("stranger", 0), 2.0)
    machine.handle(e.JobFailed("other", 1, "it broke"), 2.0)
    assert machine.handle(e.Tick(), 7.0).actions == (e.Assign("n0", 1),)


def test_what_the_daemon_says_twice_counts_once() -> None:
    machine = machine_of(2)
    assert machine.handle(e.Merged(), 1.0).actions == ()
    assert machine.handle(e.Planned(["", ""]), 1.0).actions == ()
    assert machine.handle(e.HandoffDone(), 1.0).actions == ()
    assert (machine.round, machine.phase, machine.parts_in()) == (0, "training", 0)


def test_nothing_is_assigned_in_the_moment_that_closes_the_round() -> None:
    machine = machine_of(2, quorum=1)
    machine.handle(e.UpdateIn("n0", 0), 1.0)
    machine.handle(e.NodeGone("n1"), 2.0)
    assert machine.handle(e.Tick(), 1000.0).actions == (e.Merge((1,)),)


def test_a_run_that_waits_says_who_does_not_count() -> None:
    machine = RoundMachine(
        e.RoundSettings(1, 2, 60.0, 1, 100.0, 5.0, 3, handoff=False), 0, 0.0, ["bad", "worse"]
    )
    said = machine.handle(e.NodeReady("bad"), 1.0).reason
    assert said == "waiting for nodes: 0 of 2 are ready; quarantined: bad, worse"
