"""What the round machine is told, and what it answers: plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundSettings:
    """What the machine must know of a run. ``quorum`` counts parts."""

    rounds: int
    min_nodes: int
    join_timeout_seconds: float
    quorum: int
    deadline_seconds: float
    return_seconds: float  # how long a lost node's part waits for it before others may take it
    refusals: int
    handoff: bool
    pinned: bool = False  # a part is its node's alone: secure aggregation's masks are tied to it
    least: int = 0  # without so many nodes no round opens
    spare: bool = False  # a part that failed on every node that is there is left out
    sticky: bool = False  # a part stays with its node while that lives: same seed, same bytes
    backup_after: float = (
        0.0  # times the round's median, then a part goes to a second node; 0: never
    )
    gangs: range = range(0)  # the rounds whose parts are trained in step


# ---- what happens -------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeReady:
    """A node has the task and waits for work; also one that came back."""

    node: str


@dataclass(frozen=True)
class NodeGone:
    """A node's connection ended."""

    node: str


@dataclass(frozen=True)
class Planned:
    """The round's parts exist. ``holders`` names, for each part, the node that it suits, or ""."""

    holders: Sequence[str]
    done: Sequence[int] = ()  # parts whose updates were in before a restart
    needed: int = 0  # updates without which this round cannot close, beside the quorum
    gang: Formed | None = None  # that trained it before a restart, where parts are in gangs


@dataclass(frozen=True)
class Formed:
    """A gang: which parts its members train, by rank, and how many were formed before it."""

    generation: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class UpdateIn:
    """A part's update was checked and spooled."""

    node: str
    part: int


@dataclass(frozen=True)
class JobFailed:
    """A node could not train its part, or its update was refused."""

    node: str
    part: int
    reason: str


@dataclass(frozen=True)
class GangBroke:
    """A node's gang broke, through no fault of its own: it is another member, or the network."""

    node: str
    part: int
    reason: str


@dataclass(frozen=True)
class Withdrawn:
    """An update that was in is not to be merged after all: beside the others it stands out."""

    node: str
    part: int
    reason: str


@dataclass(frozen=True)
class Lapsed:
    """What was agreed on for the round is of no use any more: it must be opened again."""

    reason: str


@dataclass(frozen=True)
class Merged:
    """The round is committed."""


@dataclass(frozen=True)
class HandoffDone:
    """DeepSpeed has finished."""


@dataclass(frozen=True)
class Tick:
    """Time has passed; nothing else."""


Event = (
    NodeReady
    | NodeGone
    | Planned
    | UpdateIn
    | JobFailed
    | GangBroke
    | Withdrawn
    | Lapsed
    | Merged
    | HandoffDone
    | Tick
)

# ---- what to do ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Make the parts of this round, then say Planned."""

    round: int


@dataclass(frozen=True)
class Assign:
    """Give the part to the node; where another has it already, this is a second copy."""

    node: str
    part: int


@dataclass(frozen=True)
class Cancel:
    """Tell the node that its work on the part is no longer needed."""

    node: str
    part: int
    reason: str


@dataclass(frozen=True)
class Form:
    """The parts that are assigned next are trained in step, by this gang."""

    gang: Formed


@dataclass(frozen=True)
class Forget:
    """An update that is in was trained by a gang that broke: it is not to be merged."""

    part: int


@dataclass(frozen=True)
class Merge:
    """Merge what is in, then say Merged; the missing parts stay at the base's values."""

    missing: tuple[int, ...]


@dataclass(frozen=True)
class Handoff:
    """Start DeepSpeed, then say HandoffDone."""


@dataclass(frozen=True)
class Finish:
    """The run is done."""


@dataclass(frozen=True)
class Fail:
    """The run cannot go on."""

    reason: str


Action = Plan | Assign | Cancel | Form | Forget | Merge | Handoff | Finish | Fail


@dataclass(frozen=True)
class Decision:
    """What to do now, why in a sentence, and when to ask again if nothing happens before."""

    actions: tuple[Action, ...]
    reason: str
    wake_at: float | None
