"""The round machine: events in, actions and a reason out. No clock, no socket, no tensor.

    waiting -> planning -> training -> merging -> planning ... -> handoff -> finished
                                                                          \\-> failed, stopped

The daemon feeds it what happened and when, and carries out what it answers. Modelled on torchft's
``quorum_compute`` (an answer and a sentence why) and dask's ``WorkerState.handle_stimulus``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from partsum.coordinator import events as e
from partsum.coordinator.gangs import Gang, why_forming
from partsum.coordinator.jobs import (
    Job,
    Member,
    alive,
    deal,
    deal_backups,
    slow_parts,
)
from partsum.coordinator.reasons import PHASES, why_training, why_waiting
from partsum.coordinator.roster import Roster

Phase = Literal["waiting", "planning", "training", "merging", "handoff", "finished", "failed"]


class RoundMachine(Roster):
    """The state of a run's rounds; changed by `handle` and by nothing else."""

    def __init__(
        self, settings: e.RoundSettings, round: int, now: float, benched: Iterable[str] = ()
    ) -> None:
        super().__init__(settings, benched)
        self.round = round
        self.phase: Phase = "waiting"
        self._since = now  # of the phase
        self._needed = settings.quorum  # updates, to close the round without the rest
        self._lapsed = False  # the round is opened again, with whoever is there
        self._gang = Gang()

    def handle(self, event: e.Event, now: float) -> e.Decision:
        """Take in one event and decide."""
        actions = self._take_in(event, now)
        if self.phase == "waiting":
            actions += self._start(now)
        if self.phase == "training":
            actions += self._train(now)
        return e.Decision(tuple(actions), self._reason(now), self._wake_at(now))

    # -- events -----------------------------------------------------------------------------------

    def _take_in(self, event: e.Event, now: float) -> list[e.Action]:
        match event:
            case e.NodeReady(node):
                self._welcome(node)
            case e.NodeGone(node):
                self._lose(node, now)
            case e.Planned() if self.phase == "planning":
                self._open(event, now)
            case e.UpdateIn(node, part):
                return self._take_update(node, part, now)
            case e.JobFailed(node, part, reason):
                self._note_failure(node, part, reason, now)
            case e.GangBroke(node, part, reason):
                self._part_ways(node, part, reason)
            case e.Withdrawn(node, part, reason):
                self._withdraw(node, part, reason, now)
            case e.Lapsed():
                return self._reopen(now)
            case e.Merged() if self.phase == "merging":
                self.round, self.jobs = self.round + 1, {}
                return self._proceed(now)
            case e.HandoffDone() if self.phase == "handoff":
                self.phase = "finished"
                return [e.Finish()]
        return []  # a Tick, or what comes too late to matter

    def _open(self, planned: e.Planned, now: float) -> None:
        hold = now + self.settings.return_seconds
        self.jobs = {
            part: Job("pending", node, hold_until=hold if node else 0.0)
            for part, node in enumerate(planned.holders)
        }
        for part in planned.done:
            self.jobs[part].state = "in"
        self.phase, self._since, self._lapsed = "training", now, False
        self._needed = max(self.settings.quorum, planned.needed)
        self._gang = Gang(planned.gang)
        self._gang.sit_out(self.jobs)

    def _take_update(self, node: str, part: int, now: float) -> list[e.Action]:
        member = self.members.setdefault(node, Member("gone"))
        job = self.jobs.get(part)
        if self.phase != "training" or job is None or job.state == "in":
            return []
        others = [name for name in job.holders() if name != node]
        job.took = now - job.given_at if job.held_by(node) else None
        job.state, job.node, job.backup = "in", node, ""
        job.failures, member.failures = member.failures, 0
        for name in (*others, node):
            self._free(name)
        return [e.Cancel(name, part, f"{node} delivered it first") for name in others]

    def _withdraw(self, node: str, part: int, reason: str, now: float) -> None:
        """Back into the training of this round, as if the update had been refused at the door."""
        job = self.jobs.get(part)
        if self.phase not in {"merging", "training"} or job is None or job.state != "in":
            return
        self.phase = "training"
        # Its failures in a row go on, which this update had seemed to end.
        self.members.setdefault(node, Member("gone")).failures += job.failures
        job.state, job.took, job.hold_until = "pending", None, 0.0
        job.failed_on.add(node)
        self._note_failure(node, part, reason, now)

    # -- decisions --------------------------------------------------------------------------------

    def _proceed(self, now: float) -> list[e.Action]:
        """Into the next round, the hand-off or the end."""
        self._since = now
        if self.round < self.settings.rounds:
            if len(alive(self.members)) < self.settings.least:
                return self._reopen(now)
            self.phase = "planning"
            return [e.Plan(self.round)]
        if self.settings.handoff:
            self.phase = "handoff"
            return [e.Handoff()]
        self.phase = "finished"
        return [e.Finish()]

    def _start(self, now: float) -> list[e.Action]:
        """The first round, or the one after a restart, once enough nodes are there."""
        if self.round >= self.settings.rounds:
            return self._proceed(now)
        if self._lapsed and self._hopeless():
            return self._give_up((), now)
        ready = len(alive(self.members))
        waited = now - self._since >= self.settings.join_timeout_seconds
        if ready >= self._wanted() or (waited and ready >= max(1, self.settings.least)):
            return self._proceed(now)
        return []

    def _train(self, now: float) -> list[e.Action]:
        if self.round in self.settings.gangs:
            return self._train_in_step(now)
        if self.parts_in() == len(self.jobs):
            return self._close((), now)
        if self._hopeless():
            return self._give_up(self._missing(), now)
        late = now - self._since >= self.settings.deadline_seconds
        if late and self._enough():
            return [
                *self._cancel_all("the round's deadline has passed"),
                *self._close(self._missing(), now),
            ]
        actions = self._assign(now)
        if all(job.state in {"in", "out"} for job in self.jobs.values()):
            return self._close(self._missing(), now) if self._enough() else self._reopen(now)
        return actions

    def _train_in_step(self, now: float) -> list[e.Action]:
        """All of a gang, or nobody."""
        if self._hopeless():
            return self._give_up(self._missing(), now)
        gang, actions = self._gang, list[e.Action]()
        if gang.formed and gang.is_broken(self.jobs, self.members, now):
            actions += self._cancel_all("its gang broke")
            actions += [e.Forget(part) for part, job in self.jobs.items() if job.state == "in"]
            gang.break_up(self.jobs, self.members)
        if gang.formed:
            if all(job.state in {"in", "out"} for job in self.jobs.values()):
                return self._close(self._missing(), now)
            return [self._give(*dealt, now) for dealt in gang.back(self.jobs, self.members)]
        dealt = gang.form(self.jobs, self.members, now)
        if gang.formed:
            actions.append(e.Form(gang.formed))
        return actions + [self._give(node, part, now) for node, part in dealt]

    def _give(self, node: str, part: int, now: float) -> e.Assign:
        job = self.jobs[part]
        job.state, job.node, job.given_at = "assigned", node, now
        self.members[node].state = "busy"
        return e.Assign(node, part)

    def _assign(self, now: float) -> list[e.Action]:
        """Pending parts to idle nodes; to those still idle, second copies of the slowest parts."""
        actions: list[e.Action] = []
        for node, part in deal(self.jobs, self.members, self.settings, now):
            actions.append(self._give(node, part, now))
        for node, part in deal_backups(self.jobs, self.members, self._backup_after(), now):
            self.jobs[part].backup = node
            self.members[node].state = "busy"
            actions.append(e.Assign(node, part))
        return actions

    def _backup_after(self) -> float:
        """Never where a second node, without the moments, would send other bytes."""
        alone = self.settings.sticky or self.settings.pinned
        return 0.0 if alone else self.settings.backup_after

    def _give_up(self, missing: tuple[int, ...], now: float) -> list[e.Action]:
        if self._enough():
            return self._close(missing, now)
        self.phase = "failed"
        return [e.Fail(f"every node failed; the last one said: {self._last_failure}")]

    def _close(self, missing: tuple[int, ...], now: float) -> list[e.Action]:
        self.phase, self._since = "merging", now
        return [e.Merge(missing)]

    def _reopen(self, now: float) -> list[e.Action]:
        """The round once more, with those who are there now."""
        self.phase, self._since, self._lapsed, self.jobs = "waiting", now, True, {}
        return self._start(now)

    def _enough(self) -> bool:
        return self.parts_in() >= self._needed

    def _wanted(self) -> int:
        """How many nodes to wait for."""
        return self.settings.least if self._lapsed else self.settings.min_nodes

    # -- questions --------------------------------------------------------------------------------

    def _reason(self, now: float) -> str:
        if self.phase == "waiting":
            return why_waiting(self.members, self._wanted())
        if self.phase != "training":
            return PHASES[self.phase]
        if self.round in self.settings.gangs and self._gang.formed is None:
            return why_forming(self.jobs, self.members, now)
        late = now - self._since >= self.settings.deadline_seconds
        return why_training(self.jobs, self.members, late, self._needed, now)

    def _wake_at(self, now: float) -> float | None:
        times: list[float] = []
        if self.phase == "waiting":
            times = [self._since + self.settings.join_timeout_seconds]
        elif self.phase == "training":
            times = [job.hold_until for job in self.jobs.values() if job.state == "pending"]
            times.append(self._since + self.settings.deadline_seconds)
            if any(member.state == "idle" for member in self.members.values()):
                times += slow_parts(self.jobs, self._backup_after()).values()
        return min((time for time in times if time > now), default=None)
