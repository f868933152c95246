"""Why the round machine does what it does, in a sentence. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence

from partsum.coordinator.jobs import Job, Member, alive
from partsum.coordinator.records import RoundPlan

_NAMED = 8  # parts, or nodes, in a sentence; of a thousand nobody would read it

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
    return f"{text}; quarantined: {_some(benched)}" if benched else text


def why_training(
    jobs: Mapping[int, Job], members: Mapping[str, Member], late: bool, needed: int, now: float
) -> str:
    """For which parts a round waits, and from whom.

    ``late``: the deadline has passed, but fewer updates than ``needed`` are in.
    """
    waiting = {part: job for part, job in jobs.items() if job.state in {"pending", "assigned"}}
    busy = [job for job in waiting.values() if job.state == "assigned"]
    whom = [node for job in busy for node in (job.node, job.backup) if node]
    text = f"waiting for part{'s'[: len(waiting) - 1]} {_some(waiting)}"
    if whom:
        text += f" from {_some(whom)}"
    elif not alive(members):
        text += "; no node is connected"
    held = (j.node for j in waiting.values() if j.state == "pending" and j.hold_until > now)
    if absent := [n for n in held if n in members and members[n].state == "gone"]:
        text += f"; {_some(absent)} may still come back"
    if late:
        arrived = sum(job.state == "in" for job in jobs.values())
        text += f"; the deadline has passed, but only {arrived} of {needed} updates of the quorum"
        text += " are in"
    return text


def _some(names: Iterable[int | str]) -> str:
    """The first of them, in order, and how many more there are."""
    every = list(dict.fromkeys(names))
    left = len(every) - _NAMED
    first = ", ".join(map(str, sorted(every[:_NAMED])))
    return f"{first} and {left} more" if left > 0 else first


def why_partial(plan: RoundPlan, missing: Sequence[int], why: str) -> str:
    """What a round lacks that closed without these parts, and what it waited for until then."""
    names, parts = ", ".join(map(str, missing)), len(plan.parts)
    if plan.handoff is not None and len(missing) < parts:
        there = f"{parts - len(missing)} of {parts} nodes"
        return (
            f"round {plan.round + 1} of the hand-off was trained by {there}, without part {names}"
        )
    return f"round {plan.round + 1} closed without part {names}; until then it was {why}"


def why_failed(error: BaseException, folder: str) -> str:
    """What ended a run whose files are in ``folder``; a full disk seldom says which."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{error.strerror}: {error.filename or f'the disk of {folder}'}; make some first"
    return str(error) or type(error).__name__
