"""What a node's daemon and its worker process say to each other, over a local pipe.

Plain frozen values, pickled; both ends run the same code on the same host.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from partsum.shared.masks import Mask
from partsum.shared.messages import Assignment, NodeProfile, Progress, TaskSpec, Update
from partsum.shared.secure import Masking


@dataclass(frozen=True)
class Load:
    """Load this task and its data, and say what the device can do."""

    task: TaskSpec


@dataclass(frozen=True)
class Train:
    """Train this. The blobs are on disk, and stay there until the answer."""

    ticket: int  # counts the daemon's orders: an assignment can be ordered twice
    assignment: Assignment
    start: Path | None
    optimizer: Path | None  # the moments that belong to ``start``
    cluster: Path
    samples: Path | None
    output: Path  # the update is written here; the optimizer state beside it
    residual: Path | None = None  # what the encoding of this part's last update lost
    folder: Path | None = None  # where the node keeps what only it has
    host: str = ""  # of a gang's member: its own address
    meet: str = ""  # and where rank 0 is; empty for rank 0

    @property
    def is_last(self) -> bool:
        """Whether the worker is of no use after it: in a gang, torch's world and DeepSpeed's are
        the process's own."""
        return self.assignment.gang is not None and self.assignment.zero is not None


@dataclass(frozen=True)
class PutOn:
    """Put these masks on an update, in a file of its own."""

    ticket: int
    update: Update
    path: Path  # of the update
    masking: Masking
    masks: tuple[Mask, ...]
    output: Path


@dataclass(frozen=True)
class Build:
    """Make a start out of an older one, in a file of its own."""

    ticket: int
    change: Path  # encoded
    against: Path  # what it is a change of
    digest: str  # of that
    output: Path


@dataclass(frozen=True)
class Stop:
    """Leave the order with this ticket, at the next step."""

    ticket: int


Work = Train | PutOn | Build
Order = Load | Work | Stop


@dataclass(frozen=True)
class Loaded:
    """The task is loaded."""

    profile: NodeProfile


@dataclass(frozen=True)
class NotLoaded:
    """The task cannot be loaded, for this reason."""

    reason: str


@dataclass(frozen=True)
class Going:
    """How far an order is."""

    ticket: int
    progress: Progress


@dataclass(frozen=True)
class Opened:
    """The members of this gang can meet at this port."""

    ticket: int
    gang: str
    port: int


@dataclass(frozen=True)
class Done:
    """An order is done; the files are closed. Their owner is the daemon now.

    ``path`` is None where nothing was to be trained: the update is the start, which is on disk.
    """

    ticket: int
    update: Update
    path: Path | None
    optimizer: Path | None
    encoded: Path | None = None
    residual: Path | None = None
    ahead: int = 0  # of its samples were done before the assignment came

    @property
    def files(self) -> list[Path]:
        """All that was written."""
        paths = (self.path, self.optimizer, self.encoded, self.residual)
        return [path for path in paths if path]


@dataclass(frozen=True)
class Built:
    """A start is made; whether it is the right one, its digest says."""

    ticket: int
    digest: str
    path: Path

    @property
    def files(self) -> list[Path]:
        """All that was written."""
        return [self.path]


@dataclass(frozen=True)
class Undone:
    """An order was stopped (``reason`` is empty) or could not be done.

    ``gang``: for another member's fault.
    """

    ticket: int
    reason: str
    gang: bool = False


Answer = Loaded | NotLoaded | Going | Opened | Done | Built | Undone
