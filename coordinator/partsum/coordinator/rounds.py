"""The round machine: events in, actions and a reason out. No clock, no socket, no tensor.

    waiting -> planning -> training -> merging -> planning ... -> handoff -> finished
                                                                          \\-> failed, stopped

The daemon feeds it what happened and when, and carries out what it answers. Modelled on torchft's
``quorum_compute`` (an answer and a sentence why) and dask's ``WorkerState.handle_stimulus``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from partsum.coordinator.events import (
    Action,
    Assign,
    Cancel,
    Decision,
    Event,
    Fail,
    Finish,
    Handoff,
    HandoffDone,
    JobFailed,
    Merge,
    Merged,
    NodeGone,
    NodeReady,
    Plan,
    Planned,
    RoundSettings,
    Tick,
    UpdateIn,
    Withdrawn,
)
from partsum.coordinator.jobs import Job, Member, alive, deal, deal_backups, idle, slow_parts

Phase = Literal["waiting", "planning", "training", "merging", "handoff", "finished", "failed"]


class RoundMachine:
    """The state of a run's rounds; changed by `handle` and by nothing else."""

    def __init__(
        self, settings: RoundSettings, round: int, now: float, benched: Iterable[str] = ()
    ) -> None:
        self.settings = settings
        self.round = round
        self.phase: Phase = "waiting"
        self.members: dict[str, Member] = {name: Member("benched") for name in benched}
        self.jobs: dict[int, Job] = {}
        self._since = now  # of the phase
        self._last_failure = ""  # of any round: nodes stay benched beyond theirs

    def handle(self, event: Event, now: float) -> Decision:
        """Take in one event and decide."""
        actions = self._take_in(event, now)
        if self.phase == "waiting":
            actions += self._start(now)
        if self.phase == "training":
            actions += self._train(now)
        return Decision(tuple(actions), self._reason(now), self._wake_at(now))

    # -- events -----------------------------------------------------------------------------------

    def _take_in(self, event: Event, now: float) -> list[Action]:
        match event:
            case NodeReady(node):
                self._welcome(node)
            case NodeGone(node):
                self._lose(node, now)
            case Planned(holders, done):
                self._open(holders, done, now)
            case UpdateIn(node, part):
                return self._take_update(node, part, now)
            case JobFailed(node, part, reason):
                self._note_failure(node, part, reason, now)
            case Withdrawn(node, part, reason):
                self._withdraw(node, part, reason, now)
            case Merged():
                self.round, self.jobs = self.round + 1, {}
                return self._proceed(now)
            case HandoffDone():
                self.phase = "finished"
                return [Finish()]
            case Tick():
                pass
        return []

    def _welcome(self, node: str) -> None:
        member = self.members.setdefault(node, Member())
        if member.state != "benched":
            member.state = "idle"
        for job in self.jobs.values():
            if job.held_by(node):  # it reconnected before we saw it go: send it again
                job.drop(node, 0.0)

    def _lose(self, node: str, now: float) -> None:
        member = self.members.get(node)
        if member is None:
            return
        if member.state != "benched":
            member.state = "gone"
        for job in self.jobs.values():
            if job.held_by(node):
                job.drop(node, now + self.settings.return_seconds)

    def _open(self, holders: Sequence[str], done: Sequence[int], now: float) -> None:
        hold = now + self.settings.return_seconds
        self.jobs = {
            part: Job("in" if part in done else "pending", node, hold_until=hold if node else 0.0)
            for part, node in enumerate(holders)
        }
        self.phase, self._since = "training", now

    def _take_update(self, node: str, part: int, now: float) -> list[Action]:
        member = self.members.setdefault(node, Member())
        job = self.jobs.get(part)
        if self.phase != "training" or job is None or job.state == "in":
            return []
        others = [name for name in job.holders() if name != node]
        job.took = now - job.given_at if job.held_by(node) else None
        job.state, job.node, job.backup = "in", node, ""
        job.failures, member.failures = member.failures, 0
        for name in (*others, node):
            self._free(name)
        return [Cancel(name, part, f"{node} delivered it first") for name in others]

    def _note_failure(self, node: str, part: int, reason: str, now: float) -> None:
        member = self.members.setdefault(node, Member())
        member.failures += 1
        self._last_failure = f"{node}: {reason}"
        job = self.jobs.get(part)
        if job is not None and job.held_by(node):
            job.drop(node, 0.0)
            job.failed_on.add(node)
        self._free(node)
        if member.failures >= self.settings.refusals:
            self._lose(node, now)
            member.state = "benched"

    def _withdraw(self, node: str, part: int, reason: str, now: float) -> None:
        """Back into the training of this round, as if the update had been refused at the door."""
        job = self.jobs.get(part)
        if self.phase not in {"merging", "training"} or job is None or job.state != "in":
            return
        self.phase = "training"
        self.members.setdefault(node, Member("gone")).failures = job.failures
        job.state, job.took = "pending", None
        job.failed_on.add(node)
        self._note_failure(node, part, reason, now)

    def _free(self, node: str) -> None:
        """It is idle, unless it works on another part than the one that this is about."""
        member = self.members.get(node)
        works = any(job.held_by(node) for job in self.jobs.values())
        if member is not None and member.state == "busy" and not works:
            member.state = "idle"

    # -- decisions --------------------------------------------------------------------------------

    def _proceed(self, now: float) -> list[Action]:
        """Into the next round, the hand-off or the end."""
        self._since = now
        if self.round < self.settings.rounds:
            self.phase = "planning"
            return [Plan(self.round)]
        if self.settings.handoff:
            self.phase = "handoff"
            return [Handoff()]
        self.phase = "finished"
        return [Finish()]

    def _start(self, now: float) -> list[Action]:
        """The first round, or the one after a restart, once enough nodes are there."""
        if self.round >= self.settings.rounds:
            return self._proceed(now)
        ready = len(alive(self.members))
        waited = now - self._since >= self.settings.join_timeout_seconds
        if ready >= self.settings.min_nodes or (waited and ready):
            return self._proceed(now)
        return []

    def _train(self, now: float) -> list[Action]:
        missing = tuple(part for part, job in self.jobs.items() if job.state != "in")
        if not missing:
            return self._close((), now)
        actions = self._assign(now)
        if self._hopeless():
            return self._give_up(missing, now)
        late = now - self._since >= self.settings.deadline_seconds
        if late and len(self.jobs) - len(missing) >= self.settings.quorum:
            return [
                *self._cancel_all("the round's deadline has passed"),
                *self._close(missing, now),
            ]
        return actions

    def _assign(self, now: float) -> list[Action]:
        """Pending parts to idle nodes; to those still idle, second copies of the slowest parts."""
        actions: list[Action] = []
        for node, part in deal(self.jobs, self.members, self.settings.sticky, now):
            job = self.jobs[part]
            job.state, job.node, job.given_at = "assigned", node, now
            self.members[node].state = "busy"
            actions.append(Assign(node, part))
        for node, part in deal_backups(self.jobs, self.members, self._backup_after(), now):
            self.jobs[part].backup = node
            self.members[node].state = "busy"
            actions.append(Assign(node, part))
        return actions

    def _backup_after(self) -> float:
        """Never where a second node, without the moments, would send other bytes."""
        return 0.0 if self.settings.sticky else self.settings.backup_after

    def _hopeless(self) -> bool:
        """Whether every node that ever came has failed too often to get more work."""
        states = {member.state for member in self.members.values()}
        return states == {"benched"}

    def _give_up(self, missing: tuple[int, ...], now: float) -> list[Action]:
        if len(self.jobs) - len(missing) >= self.settings.quorum:
            return self._close(missing, now)
        self.phase = "failed"
        return [Fail(f"every node failed; the last one said: {self._last_failure}")]

    def _close(self, missing: tuple[int, ...], now: float) -> list[Action]:
        self.phase, self._since = "merging", now
        return [Merge(missing)]

    def _cancel_all(self, reason: str) -> list[Action]:
        actions: list[Action] = []
        for part, job in self.jobs.items():
            holders = job.holders()
            if holders:
                job.state, job.backup = "pending", ""
            for node in holders:
                self._free(node)
                actions.append(Cancel(node, part, reason))
        return actions

    # -- questions --------------------------------------------------------------------------------

    def has(self, node: str, part: int) -> bool:
        """Whether the node is to train the part."""
        job = self.jobs.get(part)
        return job is not None and job.held_by(node)

    def is_benched(self, node: str) -> bool:
        """Whether the node gets no more work."""
        member = self.members.get(node)
        return member is not None and member.state == "benched"

    def parts_in(self) -> int:
        """How many updates of the round are in."""
        return sum(job.state == "in" for job in self.jobs.values())

    def _reason(self, now: float) -> str:
        here = alive(self.members)
        if self.phase == "waiting":
            return f"waiting for nodes: {len(here)} of {self.settings.min_nodes} are ready"
        if self.phase != "training":
            return {
                "planning": "cutting the round's parts",
                "merging": "merging the round's updates",
                "handoff": "DeepSpeed trains the merged base",
                "finished": "the run is done",
                "failed": "the run cannot go on",
            }[self.phase]
        waiting = [str(part) for part, job in self.jobs.items() if job.state != "in"]
        whom = [node for job in self.jobs.values() for node in job.holders()]
        text = f"waiting for part{'s'[: len(waiting) - 1]} {', '.join(waiting)}"
        if whom:
            text += f" from {', '.join(sorted(set(whom)))}"
        elif not here:
            text += "; no node is connected"
        if now - self._since >= self.settings.deadline_seconds:
            short = f"{len(self.jobs) - len(waiting)} of {self.settings.quorum}"
            text += f"; the deadline has passed, but only {short} updates of the quorum are in"
        return text

    def _wake_at(self, now: float) -> float | None:
        times: list[float] = []
        if self.phase == "waiting":
            times = [self._since + self.settings.join_timeout_seconds]
        elif self.phase == "training":
            times = [job.hold_until for job in self.jobs.values() if job.state == "pending"]
            times.append(self._since + self.settings.deadline_seconds)
            if idle(self.members):
                times += slow_parts(self.jobs, self._backup_after()).values()
        return min((time for time in times if time > now), default=None)
