"""Whatever happens to the round machine in whatever order: nothing twice, nothing lost, no stall.

hypothesis plays the nodes, the network, the daemon and the coordinator's restarts, and keeps books
of its own, which the machine's must agree with.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from partsum.coordinator import events as e
from partsum.coordinator.rounds import RoundMachine

NAMES = st.sampled_from(["a", "b", "c", "d"])
PARTS = st.integers(0, 4)  # the last is never one
LONG = 200.0  # beyond the deadline and the join timeout


class AnyOrder(RuleBasedStateMachine):
    """One run. Its books: who is connected, who holds what, which updates count."""

    @initialize(
        parts=st.integers(1, 4),
        quorum=st.integers(1, 4),
        refusals=st.integers(1, 3),
        changes=st.fixed_dictionaries(
            {
                "rounds": st.integers(1, 3),
                "min_nodes": st.integers(1, 2),
                "return_seconds": st.sampled_from([0.0, 5.0]),
                "backup_after": st.sampled_from([0.0, 2.0]),
                "sticky": st.booleans(),
                "handoff": st.booleans(),
            }
        ),
    )
    def start(self, parts: int, quorum: int, refusals: int, changes: dict[str, object]) -> None:
        self.settings = e.RoundSettings(
            join_timeout_seconds=60.0,
            deadline_seconds=100.0,
            quorum=min(quorum, parts),
            refusals=refusals,
            **changes,  # type: ignore[arg-type]
        )
        self.parts, self.now, self.over = parts, 0.0, ""
        self.round = 0  # the next to be committed
        self.benched: set[str] = set()
        self.journal: dict[int, str] = {}  # the open round's parts that count, and whose they are
        self.holders = [""] * parts  # as the journal has them
        self.begin()
        self.join("a")
        self.join("b")

    def begin(self) -> None:
        """The coordinator starts, perhaps again."""
        self.machine = RoundMachine(self.settings, self.round, self.now, sorted(self.benched))
        self.connected: set[str] = set()
        self.failures: dict[str, int] = {}  # in a row, since the start
        self.holding: dict[str, int] = {}
        self.given: set[tuple[str, int]] = set()
        self.counted: dict[int, str] = {}  # of the journal, what came in this life
        self.todo: e.Plan | e.Merge | None = None  # what the daemon is busy with
        self.tell(e.Tick())

    # -- the daemon -------------------------------------------------------------------------------

    def tell(self, event: e.Event) -> None:
        """Feed an event, check each action, and do what the daemon does at once."""
        decision = self.machine.handle(event, self.now)
        assert decision.reason
        assert decision.wake_at is None or decision.wake_at > self.now
        for name, member in self.machine.members.items():
            if member.state == "benched":
                self.benched.add(name)
                self.holding.pop(name, None)
        for action in decision.actions:
            assert not self.over
            self.act(action)
        self.says_what_it_waits_for(decision)

    def act(self, action: e.Action) -> None:
        match action:
            case e.Plan(round):
                assert (round, self.todo) == (self.round, None)
                self.todo = action
            case e.Assign(node, part):
                self.assigned(node, part)
            case e.Cancel(node, part):
                assert self.holding.pop(node) == part
            case e.Merge(missing):
                assert self.todo is None
                assert not self.holding
                assert set(missing) == set(range(self.parts)) - set(self.journal)
                assert len(self.journal) >= self.settings.quorum
                self.todo = action
            case e.Handoff():
                assert self.settings.handoff
                assert self.round == self.settings.rounds
            case e.Finish():
                assert self.round == self.settings.rounds
                self.over = "finished"
            case e.Fail():
                assert set(self.machine.members) <= self.benched
                self.over = "failed"

    def assigned(self, node: str, part: int) -> None:
        assert node in self.connected - self.benched
        assert node not in self.holding
        assert part not in self.journal
        others = [name for name, held in self.holding.items() if held == part]
        if others:
            self.second_copy(node, part, others)
        else:
            self.holders[part] = node
        self.holding[node] = part
        self.given.add((node, part))

    def second_copy(self, node: str, part: int, others: list[str]) -> None:
        assert len(others) == 1
        assert self.settings.backup_after
        assert not self.settings.sticky
        assert node not in self.machine.jobs[part].failed_on
        assert 2 * len(self.journal) >= self.parts
        assert all(job.state != "pending" for job in self.machine.jobs.values())

    def says_what_it_waits_for(self, decision: e.Decision) -> None:
        """With nothing assigned there is a time to wake up, or a word on what is missing."""
        if self.machine.phase == "training" and not self.holding:
            assert decision.wake_at is not None or "no node is connected" in decision.reason
        if self.machine.phase == "waiting":
            assert "waiting for nodes" in decision.reason

    # -- what may happen --------------------------------------------------------------------------

    @rule(node=NAMES)
    def join_at_any_time(self, node: str) -> None:
        self.join(node)

    def join(self, node: str) -> None:
        self.connected.add(node)
        self.holding.pop(node, None)
        self.tell(e.NodeReady(node))

    @rule(node=NAMES)
    def leave_at_any_time(self, node: str) -> None:
        self.leave(node)

    def leave(self, node: str) -> None:
        self.connected.discard(node)
        self.holding.pop(node, None)
        self.tell(e.NodeGone(node))

    @rule(node=NAMES, part=PARTS)
    def deliver(self, node: str, part: int) -> None:
        """Whoever it is: the part's holder, one that had it once, or nobody that was asked."""
        self.update(node, part)

    @rule(pick=st.integers(0, 3))
    def deliver_what_was_given(self, pick: int) -> None:
        if self.given:
            node, part = sorted(self.given)[pick % len(self.given)]
            self.update(node, part)

    def update(self, node: str, part: int) -> None:
        wanted = self.machine.phase == "training" and part < self.parts
        if wanted and part not in self.journal:
            self.journal[part] = self.counted[part] = node
            self.failures[node] = 0
            if self.holding.get(node) == part:
                del self.holding[node]
        self.tell(e.UpdateIn(node, part))

    @rule(pick=st.integers(0, 3))
    def deliver_what_is_held(self, pick: int) -> None:
        if self.holding:
            self.update(*sorted(self.holding.items())[pick % len(self.holding)])

    @rule(pick=st.integers(0, 3))
    def fail_what_is_held(self, pick: int) -> None:
        if self.holding:
            self.fail(*sorted(self.holding.items())[pick % len(self.holding)])

    @rule(pick=st.integers(0, 3))
    def leave_what_is_held(self, pick: int) -> None:
        if self.holding:
            self.leave(sorted(self.holding)[pick % len(self.holding)])

    @rule(node=NAMES, part=PARTS)
    def fail_anything(self, node: str, part: int) -> None:
        self.fail(node, part)

    def fail(self, node: str, part: int) -> None:
        self.failures[node] = self.failures.get(node, 0) + 1
        if self.holding.get(node) == part:
            del self.holding[node]
        self.tell(e.JobFailed(node, part, "it broke"))

    @rule(pick=st.integers(0, 3))
    def withdraw(self, pick: int) -> None:
        """Before the merge, or, as a stray, while the others still train."""
        if not self.journal or self.machine.phase not in {"merging", "training"}:
            return
        part = sorted(self.journal)[pick % len(self.journal)]
        node = self.journal.pop(part)
        self.counted.pop(part, None)
        self.failures[node] = self.failures.get(node, 0) + 1
        self.todo = None
        self.tell(e.Withdrawn(node, part, "it stands out"))

    @rule()
    def the_daemon_is_done(self) -> None:
        done, self.todo = self.todo, None
        if isinstance(done, e.Plan):
            self.given.clear()
            self.tell(e.Planned(tuple(self.holders), tuple(self.journal)))
        elif isinstance(done, e.Merge):
            self.round += 1
            for book in (self.journal, self.counted, self.given):
                book.clear()
            self.tell(e.Merged())
        elif self.machine.phase == "handoff":
            self.tell(e.HandoffDone())

    @rule(event=st.sampled_from([e.Planned([""]), e.Merged(), e.HandoffDone()]))
    def a_stray_word_of_the_daemon(self, event: e.Event) -> None:
        if self.machine.phase in {"waiting", "training", "finished", "failed"}:
            self.tell(event)

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 61.0, LONG]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tell(e.Tick())

    @precondition(lambda self: not self.over)
    @rule(seldom=st.integers(0, 4))
    def restart(self, seldom: int) -> None:
        if not seldom:
            self.begin()

    # -- what always holds ------------------------------------------------------------------------

    @invariant()
    def the_machines_books_agree(self) -> None:
        if not hasattr(self, "machine"):
            return
        jobs = self.machine.jobs
        held = {name: part for part, job in jobs.items() for name in job.holders()}
        assert held == self.holding
        assert sum(len(job.holders()) for job in jobs.values()) == len(held)
        for name, member in self.machine.members.items():
            assert (member.state == "busy") == (name in held)
            assert member.state != "idle" or name in self.connected
            assert member.state != "gone" or name not in self.connected
        if self.machine.phase in {"training", "merging"}:
            assert {part for part, job in jobs.items() if job.state == "in"} == set(self.journal)
            assert {part: jobs[part].node for part in self.counted} == self.counted

    @invariant()
    def who_fails_too_often_is_benched(self) -> None:
        for name, count in getattr(self, "failures", {}).items():
            assert count < self.settings.refusals or name in self.benched

    @invariant()
    def an_able_idle_node_never_watches_a_part_that_waits(self) -> None:
        if not hasattr(self, "machine") or self.machine.phase != "training":
            return
        living = self.connected - self.benched
        idle = living - set(self.holding)
        for job in self.machine.jobs.values():
            kept = job.node not in self.benched | idle and job.hold_until > self.now
            kept = kept or (self.settings.sticky and job.node in living)
            able = idle if living <= job.failed_on else idle - job.failed_on
            may = able & {job.node} if kept else able
            assert job.state != "pending" or not may, f"{may} could take it"

    # -- the end ----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """From anywhere: if one node stays and what is assigned is delivered, the run ends."""
        if not hasattr(self, "machine") or self.over:
            return
        self.join("the last one")
        assert self.machine.members["the last one"].state != "benched"
        for _ in range(60 * (self.settings.rounds + 1)):
            if self.over:
                break
            self.one_step_on()
        ended: str = self.over  # the steps have changed it
        assert ended == "finished", self.machine.handle(e.Tick(), self.now).reason

    def one_step_on(self) -> None:
        if self.machine.phase in {"planning", "merging", "handoff"}:
            self.the_daemon_is_done()
        elif self.holding:
            self.update(*min(self.holding.items()))
        else:
            wake = self.machine.handle(e.Tick(), self.now).wake_at
            assert wake is not None, "nothing is assigned, and nothing is waited for"
            self.now = wake
            self.tell(e.Tick())


AnyOrder.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestAnyOrder = AnyOrder.TestCase
