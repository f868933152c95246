"""Who works on which part of a round, and who should: plain state and pure functions of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from partsum.coordinator.events import RoundSettings


@dataclass
class Member:
    """A node as the machine sees it."""

    state: Literal["idle", "busy", "gone", "benched"] = "idle"
    failures: int = 0  # in a row


@dataclass
class Job:
    """A part of the current round."""

    # out: failed, or pinned to a node that is lost, so that this round goes on without it
    state: Literal["pending", "assigned", "in", "out"] = "pending"
    node: str = ""  # who has it, or had it last
    backup: str = ""  # who trains a second copy, because ``node`` is slow
    hold_until: float = 0.0  # until then only ``node`` may take it
    given_at: float = 0.0
    took: float | None = None  # seconds, from its last assignment to its update
    failures: int = 0  # of the node that delivered it, in a row, before it did
    failed_on: set[str] = field(default_factory=set)

    def held_by(self, node: str) -> bool:
        """Whether the node works on it."""
        return self.state == "assigned" and (node == self.node or node == self.backup)

    def holders(self) -> list[str]:
        """Who works on it."""
        return [n for n in (self.node, self.backup) if n] if self.state == "assigned" else []

    def drop(self, node: str, hold_until: float) -> None:
        """One of its holders is lost; the other goes on, or the part is free again."""
        if node == self.backup:
            self.backup = ""
        elif self.backup:
            self.node, self.backup = self.backup, ""
        else:
            self.state, self.hold_until = "pending", hold_until


def deal(
    jobs: Mapping[int, Job], members: Mapping[str, Member], settings: RoundSettings, now: float
) -> list[tuple[str, int]]:
    """Pending parts to idle nodes."""
    if settings.pinned:
        return deal_pinned(jobs, members, now)
    if settings.spare:
        leave_out(jobs, members)
    return deal_free(jobs, members, settings.sticky, now)


def deal_free(
    jobs: Mapping[int, Job], members: Mapping[str, Member], sticky: bool, now: float
) -> list[tuple[str, int]]:
    """Pending parts to idle nodes: first to who had them, then to whoever is free.

    ``sticky``: a part waits for the node that has its moments, though others are idle; and goes to
    it again where it failed, for as long as it gets work at all.
    """
    given: list[tuple[str, int]] = []
    pending = {part: job for part, job in jobs.items() if job.state == "pending"}
    free = set(idle(members)) if pending else set()
    for part, job in list(pending.items()):
        if job.node in free and (sticky or job.node not in job.failed_on):
            given.append((job.node, part))
            free.remove(job.node)
            del pending[part]
    reserved = {job.node for job in pending.values()}
    # A node that another pending part waits for comes last.
    queue = sorted(free, key=lambda name: (name in reserved, name))
    for part, job in pending.items():
        waits = sticky and is_alive(members, job.node)
        # To wait for a node that may not have it any more, or is back and failed it, helps nobody.
        useless = job.node in free or is_benched(members, job.node)
        if waits or (job.hold_until > now and not useless):
            continue
        # A node that failed this part gets it again only where all the others did too.
        tried = job.failed_on if job.failed_on and set(alive(members)) - job.failed_on else set()
        if node := next((node for node in queue if node not in tried), None):
            given.append((node, part))
            queue.remove(node)
            free.remove(node)
    return given


def deal_pinned(
    jobs: Mapping[int, Job], members: Mapping[str, Member], now: float
) -> list[tuple[str, int]]:
    """Pending parts to the nodes that they are pinned to; where that is lost, they are out."""
    free = set(idle(members))
    for job in jobs.values():
        lost = not is_alive(members, job.node) and job.hold_until <= now
        if job.state == "pending" and (lost or job.failed_on):
            job.state = "out"
    return [
        (job.node, part)
        for part, job in jobs.items()
        if job.state == "pending" and job.node in free
    ]


def leave_out(jobs: Mapping[int, Job], members: Mapping[str, Member]) -> None:
    """Parts that have failed on every node that is there would fail again: they are out."""
    here = set(alive(members))
    for job in jobs.values():
        if job.state == "pending" and here and here <= job.failed_on:
            job.state = "out"


def slow_parts(jobs: Mapping[int, Job], factor: float) -> dict[int, float]:
    """Parts that one node works on, and when each is late enough for a second one.

    Late is ``factor`` times the median of what the round's other parts took, once at least half of
    them are in (the backup tasks of MapReduce, Dean and Ghemawat 2004).
    """
    took = [job.took for job in jobs.values() if job.took is not None] if factor else []
    if not took or 2 * len(took) < len(jobs):
        return {}
    patience = factor * statistics.median(took)
    return {
        part: job.given_at + patience
        for part, job in jobs.items()
        if job.state == "assigned" and not job.backup
    }


def deal_backups(
    jobs: Mapping[int, Job], members: Mapping[str, Member], factor: float, now: float
) -> list[tuple[str, int]]:
    """Second copies of the slowest parts, the latest first, to nodes that nobody else needs."""
    if any(job.state == "pending" for job in jobs.values()) or not (free := idle(members)):
        return []
    given: list[tuple[str, int]] = []
    late = [(at, part) for part, at in slow_parts(jobs, factor).items() if at <= now]
    for _, part in sorted(late):
        if node := next((node for node in free if node not in jobs[part].failed_on), None):
            given.append((node, part))
            free.remove(node)
    return given


def alive(members: Mapping[str, Member]) -> list[str]:
    """Nodes that are connected and get work."""
    return sorted(name for name, m in members.items() if m.state == "idle" or m.state == "busy")


def is_alive(members: Mapping[str, Member], node: str) -> bool:
    """Whether the node is connected and gets work."""
    return node in members and members[node].state in {"idle", "busy"}


def is_benched(members: Mapping[str, Member], node: str) -> bool:
    """Whether the node gets no more work."""
    return node in members and members[node].state == "benched"


def idle(members: Mapping[str, Member]) -> list[str]:
    """Nodes that could begin at once."""
    return sorted(name for name, member in members.items() if member.state == "idle")
