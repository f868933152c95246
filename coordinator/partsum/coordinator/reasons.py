"""Why the round machine does what it does, in a sentence. Pure."""

from __future__ import annotations

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


def why_training(jobs: Mapping[int, Job], here: list[str], late: bool, needed: int) -> str:
    """For which parts a round waits, and from whom.

    ``here`` are the nodes that are connected; ``late``: the deadline has passed, but fewer updates
    than ``needed`` are in.
    """
    waiting = [str(part) for part, job in jobs.items() if job.state in {"pending", "assigned"}]
    whom = [node for job in jobs.values() for node in job.holders()]
    text = f"waiting for part{'s'[: len(waiting) - 1]} {', '.join(waiting)}"
    if whom:
        text += f" from {', '.join(sorted(set(whom)))}"
    elif not here:
        text += "; no node is connected"
    if late:
        arrived = sum(job.state == "in" for job in jobs.values())
        text += f"; the deadline has passed, but only {arrived} of {needed} updates of the quorum"
        text += " are in"
    return text
