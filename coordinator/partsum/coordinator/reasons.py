"""Why the round machine does what it does, in a sentence. Pure."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from partsum.coordinator.jobs import Job, Member, alive

PHASES = {
    "planning": "cutting the round's parts",
    "merging": "merging the round's updates",
    "handoff": "DeepSpeed trains the merged base",
    "finished": "the run is done",
    "failed": "the run cannot go on",
}


def why_waiting(members: Mapping[str, Member], wanted: int) -> str:
    """How many nodes there are of how many, and who does not count."""
    text = f"waiting for nodes: {len(alive(members))} of {wanted} are ready"
    benched = sorted(name for name, member in members.items() if member.state == "benched")
    return f"{text}; quarantined: {', '.join(benched)}" if benched else text


def why_training(
    jobs: Mapping[int, Job], members: Mapping[str, Member], late: bool, needed: int, now: float
) -> str:
    """For which parts a round waits, and from whom.

    ``late``: the deadline has passed, but fewer updates than ``needed`` are in.
    """
    waiting = [str(part) for part, job in jobs.items() if job.state in {"pending", "assigned"}]
    whom = [node for job in jobs.values() for node in job.holders()]
    text = f"waiting for part{'s'[: len(waiting) - 1]} {', '.join(waiting)}"
    if whom:
        text += f" from {', '.join(sorted(set(whom)))}"
    elif not alive(members):
        text += "; no node is connected"
    held = {j.node for j in jobs.values() if j.state == "pending" and j.hold_until > now}
    if absent := sorted(n for n in held if n in members and members[n].state == "gone"):
        text += f"; {', '.join(absent)} may still come back"
    if late:
        arrived = sum(job.state == "in" for job in jobs.values())
        text += f"; the deadline has passed, but only {arrived} of {needed} updates of the quorum"
        text += " are in"
    return text


def why_failed(error: BaseException, folder: str) -> str:
    """What ended a run whose files are in ``folder``; a full disk seldom says which."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{error.strerror}: {error.filename or f'the disk of {folder}'}; make some first"
    return str(error) or type(error).__name__
