"""The round machine: events in, actions and a reason out. No clock, no socket, no tensor.

    waiting -> planning -> training -> merging -> planning ... -> handoff -> finished
                                                                          \\-> failed, stopped

The daemon feeds it what happened and when, and carries out what it answers. Modelled on torchft's
``quorum_compute`` (an answer and a sentence why) and dask's ``WorkerState.handle_stimulus``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
)

Phase = Literal["waiting", "planning", "training", "merging", "handoff", "finished", "failed"]


@dataclass
class Member:
    """A node as the machine sees it."""

    state: Literal["idle", "busy", "gone", "benched"] = "idle"
    failures: int = 0  # in a row


@dataclass
class Job:
    """A part of the current round."""

    state: Literal["pending", "assigned", "in"] = "pending"
    node: str = ""  # who has it, or had it last
    hold_until: float = 0.0  # until then only ``node`` may take it
    failed_on: set[str] = field(default_factory=set)


class RoundMachine:
    """The state of a run's rounds; changed by `handle` and by nothing else."""

    def __init__(self, settings: RoundSettings, round: int, now: float) -> None:
        self.settings = settings
        self.round = round
        self.phase: Phase = "waiting"
        self.members: dict[str, Member] = {}
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
                return self._take_update(node, part)
            case JobFailed(node, part, reason):
                self._note_failure(node, part, reason, now)
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
            if job.node == node and job.state == "assigned":
                job.state = "pending"  # it reconnected before we saw it go: send it again

    def _lose(self, node: str, now: float) -> None:
        member = self.members.get(node)
        if member is None:
            return
        if member.state != "benched":
            member.state = "gone"
        for job in self.jobs.values():
            if job.node == node and job.state == "assigned":
                job.state, job.hold_until = "pending", now + self.settings.return_seconds

    def _open(self, holders: Sequence[str], done: Sequence[int], now: float) -> None:
        hold = now + self.settings.return_seconds
        self.jobs = {
            part: Job("in" if part in done else "pending", node, hold if node else 0.0)
            for part, node in enumerate(holders)
        }
        self.phase, self._since = "training", now

    def _take_update(self, node: str, part: int) -> list[Action]:
        member = self.members.setdefault(node, Member())
        member.failures = 0
        job = self.jobs.get(part)
        if self.phase != "training" or job is None or job.state == "in":
            return []
        actions: list[Action] = []
        if job.state == "assigned" and job.node != node:
            actions.append(Cancel(job.node, part, f"{node} delivered it first"))
        slower, job.state, job.node = job.node, "in", node
        self._free(slower)
        self._free(node)
        return actions

    def _note_failure(self, node: str, part: int, reason: str, now: float) -> None:
        member = self.members.setdefault(node, Member())
        member.failures += 1
        self._last_failure = f"{node}: {reason}"
        job = self.jobs.get(part)
        if job is not None and job.state == "assigned" and job.node == node:
            job.state, job.hold_until = "pending", 0.0
            job.failed_on.add(node)
        self._free(node)
        if member.failures >= self.settings.refusals:
            self._lose(node, now)
            member.state = "benched"

    def _free(self, node: str) -> None:
        """It is idle, unless it works on another part than the one that this is about."""
        member = self.members.get(node)
        works = any(job.node == node and job.state == "assigned" for job in self.jobs.values())
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
        ready = len(self._alive())
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
        """Pending parts to idle nodes: first to who had them, then to whoever is free."""
        actions: list[Action] = []
        pending = [(part, job) for part, job in self.jobs.items() if job.state == "pending"]
        for part, job in pending:
            if self._is_idle(job.node) and job.node not in job.failed_on:
                actions.append(self._give(part, job, job.node))
        reserved = {job.node for _, job in pending if job.state == "pending"}
        for part, job in pending:
            if job.state != "pending" or job.hold_until > now or self._sticks(job):
                continue
            # A node that failed this part gets it again only where all the others did too.
            tried = job.failed_on if set(self._alive()) - job.failed_on else set()
            idle = [node for node in self._idle() if node not in tried]
            if idle:
                # A node that another pending part waits for comes last.
                node = min(idle, key=lambda name: (name in reserved, name))
                actions.append(self._give(part, job, node))
        return actions

    def _sticks(self, job: Job) -> bool:
        """Whether the part waits for the node that has its moments, though others are idle."""
        return self.settings.sticky and job.node in set(self._alive()) - job.failed_on

    def _give(self, part: int, job: Job, node: str) -> Assign:
        job.state, job.node = "assigned", node
        self.members[node].state = "busy"
        return Assign(node, part)

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
            if job.state == "assigned":
                job.state = "pending"
                self._free(job.node)
                actions.append(Cancel(job.node, part, reason))
        return actions

    # -- questions --------------------------------------------------------------------------------

    def _alive(self) -> list[str]:
        return sorted(n for n, m in self.members.items() if m.state in {"idle", "busy"})

    def _idle(self) -> list[str]:
        return [node for node in self._alive() if self._is_idle(node)]

    def _is_idle(self, node: str) -> bool:
        return node in self.members and self.members[node].state == "idle"

    def _reason(self, now: float) -> str:
        alive = self._alive()
        if self.phase == "waiting":
            return f"waiting for nodes: {len(alive)} of {self.settings.min_nodes} are ready"
        if self.phase != "training":
            return {
                "planning": "cutting the round's parts",
                "merging": "merging the round's updates",
                "handoff": "DeepSpeed trains the merged base",
                "finished": "the run is done",
                "failed": "the run cannot go on",
            }[self.phase]
        waiting = [str(part) for part, job in self.jobs.items() if job.state != "in"]
        whom = [job.node for job in self.jobs.values() if job.state == "assigned"]
        text = f"waiting for part{'s'[: len(waiting) - 1]} {', '.join(waiting)}"
        if whom:
            text += f" from {', '.join(sorted(set(whom)))}"
        elif not alive:
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
        return min((time for time in times if time > now), default=None)
