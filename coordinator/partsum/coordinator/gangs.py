"""Who trains a round in step, and when that gang is to be formed anew. Pure.

All of a gang's parts are dealt at once: one for each node that is there, the first parts first
where nodes are too few. From then on the members stand or fall together. One that is lost may come
back as long as the others still train (it was only its control stream, or a coordinator that
restarted); once a member says that the gang is broken, or the lost one has been away too long, all
begin again from what the round began with, as another generation, with those who are there.
torchft's quorums (`lighthouse.rs`) do the same for every step; here it is for every round.
"""

from __future__ import annotations

from collections.abc import Mapping

from partsum.coordinator.events import Formed
from partsum.coordinator.jobs import Job, Member, alive, idle, is_alive, is_benched

_PATIENCE = 2  # gangs that broke with everybody there, before the next one is smaller


class Gang:
    """A round's gang; changed by its methods and by nothing else.

    ``formed`` is None while it waits for members.
    """

    def __init__(self, formed: Formed | None = None) -> None:
        self.formed = formed
        self._generation = formed.generation if formed else 0
        self._broken = 0  # in a row, with everybody there
        self._size = 0  # of the last one

    def sit_out(self, jobs: Mapping[int, Job]) -> None:
        """Parts that the gang has no node for are out, as long as it stands."""
        members = self.formed.parts if self.formed else ()
        for part, job in jobs.items():
            if self.formed and part not in members and job.state == "pending":
                job.state, job.node = "out", ""

    def form(
        self, jobs: Mapping[int, Job], members: Mapping[str, Member], now: float
    ) -> list[tuple[str, int]]:
        """Whom each part goes to, once all who may come are there; else nothing.

        A part goes to the node that had it, if that is there: it has the part's moments.
        """
        free = idle(members)
        busy = len(free) < len(jobs) and len(free) < len(alive(members))
        if not free or busy or _awaited(jobs, members, now):
            return []
        size = min(len(jobs), len(free), self._limit())
        dealt = dict[int, str]()
        for part in sorted(jobs)[:size]:
            if (node := jobs[part].node) in free:
                dealt[part] = node
                free.remove(node)
        others = iter(sorted(free))
        dealt |= {part: next(others) for part in sorted(jobs)[:size] if part not in dealt}
        self._generation += 1
        self._size = size
        self.formed = Formed(self._generation, tuple(sorted(dealt)))
        self.sit_out(jobs)
        return [(dealt[part], part) for part in sorted(dealt)]

    def _limit(self) -> int:
        """Where nobody was lost, somebody cannot reach the others; fewer may fare better."""
        return self._size - 1 if self._broken >= _PATIENCE and self._size > 1 else 1 << 30

    def back(self, jobs: Mapping[int, Job], members: Mapping[str, Member]) -> list[tuple[str, int]]:
        """Members whose control stream was gone, and who are there again."""
        free = set(idle(members))
        return [(j.node, k) for k, j in jobs.items() if j.state == "pending" and j.node in free]

    def is_broken(self, jobs: Mapping[int, Job], members: Mapping[str, Member], now: float) -> bool:
        """Whether a member has said so, or stays away for too long."""
        return any(
            job.state == "pending"
            and (job.failed_on or (job.hold_until <= now and not is_alive(members, job.node)))
            for job in jobs.values()
        )

    def break_up(self, jobs: Mapping[int, Job], members: Mapping[str, Member]) -> None:
        """All parts are free again; who had one keeps its place for as long as it is held."""
        lost = any(job.node and not is_alive(members, job.node) for job in jobs.values())
        self._broken = 0 if lost else self._broken + 1
        self.formed = None
        for job in jobs.values():
            job.state, job.took, job.backup = "pending", None, ""
            job.failed_on.clear()


def _awaited(jobs: Mapping[int, Job], members: Mapping[str, Member], now: float) -> list[str]:
    """Nodes that had a part, are away, and may come back with its moments."""
    held = {job.node for job in jobs.values() if job.node and job.hold_until > now}
    return sorted(n for n in held if not (is_alive(members, n) or is_benched(members, n)))


def why_forming(jobs: Mapping[int, Job], members: Mapping[str, Member], now: float) -> str:
    """For whom a gang waits."""
    awaited = _awaited(jobs, members, now)
    text = f"forming a gang: {len(idle(members))} of {len(jobs)} members are ready"
    return f"{text}; {', '.join(awaited)} may still come back" if awaited else text
