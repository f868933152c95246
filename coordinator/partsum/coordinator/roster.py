"""Who is there, and who has which part of the round. Plain state; no decision is made here."""

from __future__ import annotations

from collections.abc import Iterable

from partsum.coordinator import events as e
from partsum.coordinator.jobs import Job, Member, is_benched


class Roster:
    """A run's nodes, and the parts of its open round."""

    def __init__(self, settings: e.RoundSettings, benched: Iterable[str] = ()) -> None:
        self.settings = settings
        self.members: dict[str, Member] = {name: Member("benched") for name in benched}
        self.jobs: dict[int, Job] = {}
        self._last_failure = ""  # of any round: nodes stay benched beyond theirs

    # -- questions --------------------------------------------------------------------------------

    def has(self, node: str, part: int) -> bool:
        """Whether the node is to train the part."""
        job = self.jobs.get(part)
        return job is not None and job.held_by(node)

    def nodes(self) -> dict[int, str]:
        """Who has each part, or had it last."""
        return {part: job.node for part, job in self.jobs.items()}

    def is_benched(self, node: str) -> bool:
        """Whether the node gets no more work."""
        return is_benched(self.members, node)

    def parts_in(self) -> int:
        """How many updates of the round are in."""
        return [job.state for job in self.jobs.values()].count("in")

    def _hopeless(self) -> bool:
        """Whether every node that ever came has failed too often to get more work."""
        states = (member.state == "benched" for member in self.members.values())
        return bool(self.members) and all(states)

    def _missing(self) -> tuple[int, ...]:
        return tuple(part for part, job in self.jobs.items() if job.state != "in")

    # -- what happens to it -----------------------------------------------------------------------

    def _welcome(self, node: str) -> None:
        member = self.members.setdefault(node, Member())
        if member.state != "benched":
            member.state = "idle"
        for job in self.jobs.values():
            if job.held_by(node):  # it reconnected before we saw it go: send it again
                job.drop(node, 0.0)
            elif job.state == "out" and job.node == node and not job.failed_on:
                job.state = "pending"  # given up too early

    def _lose(self, node: str, now: float) -> None:
        member = self.members.get(node)
        if member is None:
            return
        if member.state != "benched":
            member.state = "gone"
        for job in self.jobs.values():
            if job.held_by(node):
                job.drop(node, now + self.settings.return_seconds)

    def _note_failure(self, node: str, part: int, reason: str, now: float) -> None:
        member = self.members.setdefault(node, Member("gone"))
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

    def _part_ways(self, node: str, part: int, reason: str) -> None:
        """A member of a gang that broke says so, and is to blame for nothing."""
        job = self.jobs.get(part)
        if job is not None and job.held_by(node):
            self._last_failure = f"{node}: {reason}"
            job.drop(node, 0.0)
            job.failed_on.add(node)
        self._free(node)

    def _free(self, node: str) -> None:
        """It is idle, unless it works on another part than the one that this is about."""
        member = self.members.get(node)
        if member is None or member.state != "busy":
            return
        if not any(job.held_by(node) for job in self.jobs.values()):
            member.state = "idle"

    def _cancel_all(self, reason: str) -> list[e.Action]:
        actions: list[e.Action] = []
        for part, job in self.jobs.items():
            holders = job.holders()
            if holders:
                job.state, job.backup = "pending", ""
            for node in holders:
                self._free(node)
                actions.append(e.Cancel(node, part, reason))
        return actions
