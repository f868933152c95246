"""Rounds whose parts are trained in step: a gang stands or falls as one."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from partsum.coordinator import events as e
from partsum.coordinator.rounds import RoundMachine

SETTINGS = e.RoundSettings(
    rounds=2,
    min_nodes=3,
    join_timeout_seconds=60.0,
    quorum=1,
    deadline_seconds=100.0,
    return_seconds=5.0,
    refusals=3,
    handoff=False,
    gangs=range(2),
)
NODES = ["a", "b", "c"]


def opened(
    nodes: Iterable[str] = NODES, holders: Iterable[str] = ("", "", "")
) -> tuple[RoundMachine, e.Decision]:
    machine = RoundMachine(SETTINGS, 0, 0.0)
    for node in nodes:
        machine.handle(e.NodeReady(node), 0.0)
    machine.handle(e.Tick(), 60.0)
    return machine, machine.handle(e.Planned(list(holders)), 60.0)


def assigned(decision: e.Decision) -> dict[str, int]:
    return {a.node: a.part for a in decision.actions if isinstance(a, e.Assign)}


def formed(decision: e.Decision) -> e.Formed | None:
    return next((a.gang for a in decision.actions if isinstance(a, e.Form)), None)


def test_all_parts_are_dealt_at_once_after_the_gang_is_named() -> None:
    _, decision = opened()
    assert decision.actions[0] == e.Form(e.Formed(1, (0, 1, 2)))
    assert assigned(decision) == {"a": 0, "b": 1, "c": 2}


def test_a_part_goes_to_the_node_that_has_its_moments() -> None:
    _, decision = opened(holders=("c", "", "a"))
    assert assigned(decision) == {"c": 0, "b": 1, "a": 2}


def test_with_too_few_nodes_the_first_parts_are_trained_and_the_round_closes_without_the_rest() -> (
    None
):
    machine, decision = opened(nodes=("a", "b"))
    assert formed(decision) == e.Formed(1, (0, 1))
    assert assigned(decision) == {"a": 0, "b": 1}
    machine.handle(e.UpdateIn("a", 0), 61.0)
    assert machine.handle(e.UpdateIn("b", 1), 61.0).actions == (e.Merge((2,)),)


def test_a_node_that_had_a_part_is_waited_for_before_the_gang_forms() -> None:
    machine, decision = opened(nodes=("a", "b"), holders=("a", "b", "c"))
    assert not decision.actions
    assert decision.wake_at == 65.0
    assert decision.reason == ("forming a gang: 2 of 3 members are ready; c may still come back")
    assert assigned(machine.handle(e.NodeReady("c"), 61.0)) == {"a": 0, "b": 1, "c": 2}


def test_a_spare_node_does_not_take_the_part_of_one_that_may_come_back() -> None:
    machine, _ = opened(nodes=("a", "b", "c", "d"))
    machine.handle(e.NodeGone("b"), 61.0)
    broke = machine.handle(e.GangBroke("a", 0, "b is gone"), 62.0)
    assert formed(broke) is None
    assert assigned(machine.handle(e.Tick(), 66.0)) == {"a": 0, "c": 2, "d": 1}


def test_a_quarantined_node_is_not_waited_for() -> None:
    machine = RoundMachine(SETTINGS, 0, 0.0, benched=["c"])
    for node in ("a", "b"):
        machine.handle(e.NodeReady(node), 0.0)
    machine.handle(e.Tick(), 60.0)
    assert assigned(machine.handle(e.Planned(["a", "b", "c"]), 60.0)) == {"a": 0, "b": 1}


def test_without_it_the_gang_forms_with_those_who_are_there() -> None:
    machine, _ = opened(nodes=("a", "b"), holders=("a", "b", "c"))
    assert assigned(machine.handle(e.Tick(), 65.0)) == {"a": 0, "b": 1}


def test_a_connection_that_is_lost_and_comes_back_disturbs_nobody() -> None:
    machine, _ = opened()
    assert not machine.handle(e.NodeGone("b"), 61.0).actions
    assert machine.handle(e.NodeReady("b"), 62.0).actions == (e.Assign("b", 1),)


def test_a_gang_that_broke_begins_again_with_the_lost_one_if_it_returns() -> None:
    machine, _ = opened()
    machine.handle(e.NodeGone("b"), 61.0)
    broke = machine.handle(e.GangBroke("a", 0, "b is gone"), 62.0)
    assert set(broke.actions) == {e.Cancel("c", 2, "its gang broke")}
    again = machine.handle(e.NodeReady("b"), 63.0)
    assert formed(again) == e.Formed(2, (0, 1, 2))
    assert assigned(again) == {"a": 0, "b": 1, "c": 2}


def test_a_member_that_stays_away_breaks_the_gang_though_the_others_hang() -> None:
    machine, _ = opened()
    machine.handle(e.NodeGone("b"), 61.0)
    late = machine.handle(e.Tick(), 66.0)
    assert {a.node for a in late.actions if isinstance(a, e.Cancel)} == {"a", "c"}
    assert formed(late) == e.Formed(2, (0, 1))
    assert assigned(late) == {"a": 0, "c": 1}


def test_an_update_of_a_gang_that_broke_is_forgotten() -> None:
    machine, _ = opened()
    machine.handle(e.UpdateIn("a", 0), 61.0)
    broke = machine.handle(e.JobFailed("b", 1, "out of memory"), 62.0)
    assert e.Forget(0) in broke.actions
    assert formed(broke) == e.Formed(2, (0, 1, 2))


def test_a_member_that_is_to_blame_is_benched_at_last_and_the_innocent_are_not() -> None:
    machine, decision = opened()
    for _ in range(3):
        machine.handle(e.GangBroke("a", 0, "b is gone"), 61.0)
        decision = machine.handle(e.JobFailed("b", 1, "out of memory"), 61.0)
    assert machine.is_benched("b")
    assert set(assigned(decision)) == {"a", "c"}


def test_a_gang_that_breaks_with_everybody_there_is_formed_smaller_until_it_holds() -> None:
    machine, decision = opened()
    sizes = []
    for _ in range(4):
        gang = formed(decision)
        assert gang is not None
        sizes.append(len(gang.parts))
        decision = machine.handle(e.GangBroke("a", 0, "no route to c"), 61.0)
    assert sizes == [3, 3, 2, 1]


def test_a_restarted_coordinator_lets_the_gang_go_on() -> None:
    machine = RoundMachine(SETTINGS, 0, 0.0)
    for node in NODES:
        machine.handle(e.NodeReady(node), 0.0)
    known = e.Planned(["a", "b", ""], gang=e.Formed(4, (0, 1)))
    decision = machine.handle(known, 1.0)
    assert formed(decision) is None
    assert assigned(decision) == {"a": 0, "b": 1}
    machine.handle(e.UpdateIn("a", 0), 2.0)
    assert machine.handle(e.UpdateIn("b", 1), 2.0).actions == (e.Merge((2,)),)


def test_where_its_members_do_not_come_back_to_it_another_is_formed() -> None:
    machine = RoundMachine(SETTINGS, 0, 0.0)
    for node in ("a", "c", "d"):
        machine.handle(e.NodeReady(node), 0.0)
    machine.handle(e.Planned(["a", "b", ""], gang=e.Formed(4, (0, 1))), 1.0)
    decision = machine.handle(e.Tick(), 6.0)
    assert formed(decision) == e.Formed(5, (0, 1, 2))
    assert assigned(decision) == {"a": 0, "c": 1, "d": 2}


class AnyOrder(RuleBasedStateMachine):
    """Nodes come, go, fail and deliver in any order: one gang at a time, and the run ends."""

    @initialize(parts=st.integers(1, 4), hold=st.sampled_from([0.0, 5.0]))
    def start(self, parts: int, hold: float) -> None:
        self.settings = e.RoundSettings(
            **{**vars(SETTINGS), "return_seconds": hold, "min_nodes": 1}
        )
        self.parts, self.round, self.now, self.over = parts, 0, 0.0, False
        self.gang: e.Formed | None = None  # as the journal has it
        self.holders = [""] * parts
        self.done: set[int] = set()
        self.connected: set[str] = set()
        self.begin()

    def begin(self) -> None:
        self.machine = RoundMachine(self.settings, self.round, self.now)
        self.connected.clear()
        self.holding: dict[str, int] = {}
        self.todo: e.Action | None = None
        self.tell(e.Tick())

    def tell(self, event: e.Event) -> None:
        decision = self.machine.handle(event, self.now)
        assert decision.reason
        for action in decision.actions:
            self.act(action)

    def act(self, action: e.Action) -> None:
        match action:
            case e.Plan() | e.Merge():
                assert not self.holding
                self.todo = action
            case e.Form(gang):
                assert not self.holding  # of another one
                assert not self.done
                assert gang.generation > (self.gang.generation if self.gang else 0)
                self.gang = gang
            case e.Assign(node, part):
                assert node in self.connected
                assert node not in self.holding
                assert self.gang is not None
                assert part in self.gang.parts
                self.holding[node], self.holders[part] = part, node
            case e.Cancel(node, part):
                assert self.holding.pop(node) == part
            case e.Forget(part):
                self.done.remove(part)
            case e.Finish() | e.Fail():
                self.over = True

    @rule(node=st.sampled_from("abcd"))
    def join(self, node: str) -> None:
        self.connected.add(node)
        self.holding.pop(node, None)
        self.tell(e.NodeReady(node))

    @rule(node=st.sampled_from("abcd"))
    def leave(self, node: str) -> None:
        self.connected.discard(node)
        self.holding.pop(node, None)
        self.tell(e.NodeGone(node))

    @precondition(lambda self: self.holding)
    @rule(pick=st.integers(0, 3), blameless=st.booleans())
    def fail(self, pick: int, blameless: bool) -> None:
        node = sorted(self.holding)[pick % len(self.holding)]
        part = self.holding.pop(node)
        kind = e.GangBroke if blameless else e.JobFailed
        self.tell(kind(node, part, "no luck"))

    @precondition(lambda self: self.holding)
    @rule(pick=st.integers(0, 3))
    def deliver(self, pick: int) -> None:
        node = sorted(self.holding)[pick % len(self.holding)]
        part = self.holding.pop(node)
        self.done.add(part)
        self.tell(e.UpdateIn(node, part))

    @rule(seconds=st.sampled_from([1.0, 6.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tell(e.Tick())

    @precondition(lambda self: self.todo is not None)
    @rule()
    def do(self) -> None:
        todo, self.todo = self.todo, None
        if isinstance(todo, e.Plan):
            self.tell(e.Planned(list(self.holders), sorted(self.done), gang=self.gang))
            return
        assert self.gang is not None
        assert self.done == set(self.gang.parts)
        self.round += 1
        self.gang, self.done, self.holders = None, set(), [""] * self.parts
        self.tell(e.Merged())

    @precondition(lambda self: not self.over)
    @rule()
    def restart(self) -> None:
        self.begin()

    def teardown(self) -> None:
        """Left in peace, with nodes that do their work, it ends."""
        if not hasattr(self, "machine"):
            return
        for _ in range(20):
            if self.over:
                return
            for node in "efgh":
                self.join(node)
            self.now += 61.0
            self.tell(e.Tick())
            while self.todo is not None or self.holding:
                if self.todo is not None:
                    self.do()
                else:
                    self.deliver(0)
        raise AssertionError(f"it waits for ever: {self.machine.handle(e.Tick(), self.now)}")


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
