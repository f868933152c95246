"""What coordinator and node say to each other, as plain frozen values.

`wire` turns them into protobuf and back; nothing else knows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from partsum.shared.secure import Masking

if TYPE_CHECKING:  # width needs torch, and a node's daemon does without
    from partsum.shared.width import Widths


Phase = Literal["waiting", "parts", "cotrain", "handoff", "finished", "stopped", "failed"]
"""What a run is at, as an operator sees it."""

Encoding = Literal["float32", "bfloat16", "int8"]
"""How matrices travel; see `encoding`."""


@dataclass(frozen=True)
class Part:
    """For each width group that is cut, the sorted units that are kept; for each gate, on or off.

    A group that is not named is kept whole and a gate that is not named is on; the part of neither
    is the base itself.
    """

    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    gates: Mapping[str, bool] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.units.items())), self.off))

    @property
    def off(self) -> tuple[str, ...]:
        """The names of the gates that are off, sorted."""
        return tuple(sorted(name for name, on in self.gates.items() if not on))

    def fraction(self, widths: Widths) -> float:
        """The mean share of units kept over the groups that are cut; 1 for the whole base."""
        shares = [len(kept) / widths.group(name).units for name, kept in self.units.items()]
        return sum(shares) / len(shares) if shares else 1.0


@dataclass(frozen=True)
class Blob:
    """Bytes by name: the name is their digest (xxh3-128, 32 hex digits)."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Delta:
    """What makes one blob out of another: an encoded change, and the blob that it is added to."""

    blob: Blob
    against: Blob


@dataclass(frozen=True)
class NodeProfile:
    """What a node is and can do. ``memory_bytes`` is what the device has free for training."""

    device: str  # "cuda:0 NVIDIA H100", "cpu"
    memory_bytes: int
    gflops: float  # measured float32 matrix products, 10^9 a second
    task_digest: str
    data_digest: str  # empty: this node has no copy of the data set
    deepspeed: bool = False  # it is installed here


@dataclass(frozen=True)
class TaskSpec:
    """The task that a run trains: its name and the options of its function."""

    name: str
    options: Mapping[str, int | float | str | bool | list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Regularisation:
    """Random gates in training; see RegularisationConfig for each field's meaning."""

    survival: float = 1.0
    schedule: Literal["linear", "constant"] = "linear"
    gates_on: float = 1.0
    splits: int = 2


@dataclass(frozen=True)
class TrainSettings:
    """How an assignment is trained; see TrainingConfig for each field's meaning."""

    batch_size: int
    learning_rate: float
    width_lr_power: float
    weight_decay: float
    betas: tuple[float, float]
    gradient_clip: float
    warmup: float
    precision: Literal["float32", "bfloat16"]
    aggregate: Literal["weights", "gradients"]
    deterministic: bool
    carry_moments: bool = False  # the update's file holds AdamW's moments beside the weights
    proximal: float = 0.0
    encoding: Encoding = "float32"  # of updates on their way
    keep_moments: bool = False  # of this node's last update of the part, whatever the start
    regularisation: Regularisation = Regularisation()


ZeroWay = Literal["apart", "together", "pipeline"]
"""How nodes train the hand-off; see HandoffConfig."""


@dataclass(frozen=True)
class ZeroWork:
    """A stretch of the hand-off, which DeepSpeed trains; see HandoffConfig for most fields.

    Steps count optimizer steps of the hand-off: ``first_step`` were done before this assignment,
    which takes ``steps`` of the ``total_steps``. ``share`` is where on the run's schedule it began.
    """

    way: ZeroWay
    stage: Literal[0, 1, 2, 3]
    offload: bool
    micro_batches: int
    first_step: int
    steps: int
    total_steps: int
    share: float
    norm_parts: tuple[Part, ...] = ()  # layer norms keep to their slices; none: they do not
    own_data: bool = False  # of a gang's member: its cluster is its own; else all share one
    start_before: str = ""  # digest of what the stretch before began with; empty: there was none


Backend = Literal["gloo", "nccl"]
"""What a gang's members exchange tensors over."""


@dataclass(frozen=True)
class GangPlace:
    """A member's place in a gang: nodes that train in step, in a process group of their own."""

    id: str  # of this forming: when the gang breaks, the next one has another
    rank: int
    parts: tuple[Part, ...]  # what each member trains, by rank
    backend: Backend
    secret: str  # prefixes the keys of the members' store; keeps gangs apart, protects nothing
    timeout_seconds: float  # of meeting, and of each exchange

    @property
    def size(self) -> int:
        """How many members there are."""
        return len(self.parts)


@dataclass(frozen=True)
class Assignment:
    """One part of one round, for one node.

    ``first_sample`` and ``num_samples`` count samples of an endless shuffled walk over the
    cluster, so that rounds continue each other's epochs. ``progress`` is where on the run's
    learning-rate schedule the assignment starts and ends, in [0, 1]. ``ahead_to`` is where the
    part's next one will end, if it may be begun while this one's update travels; 0: it may not.
    """

    id: str  # "r3-p1", the part's place in the run
    round: int
    part_index: int
    part: Part
    seed: int
    start: Blob | None  # None: initialise from the seed, nothing to download
    cluster: Blob  # int64 sample indices
    samples: Blob | None  # the cluster's samples, where the node has no copy
    first_sample: int
    num_samples: int
    progress: tuple[float, float]
    settings: TrainSettings
    masking: Masking | None = None  # secure aggregation: how to mask the update
    ahead_to: float = 0.0
    start_delta: Delta | None = None  # makes the start out of an older one, in fewer bytes
    zero: ZeroWork | None = None  # DeepSpeed trains it, in a process of its own
    gang: GangPlace | None = None  # train it in step with others


@dataclass(frozen=True)
class Update:
    """What training made of an assignment; the tensors are in the blob."""

    assignment_id: str
    round: int
    part_index: int
    start_digest: str  # of the weights that training started from; empty: from the seed
    num_samples: int
    loss: float  # mean training loss over the assignment
    train_seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    blob: Blob
    session: str = ""  # secure aggregation: of the masks that are on the tensors
    encoded: Blob | None = None  # what stands in for the blob on its way
    encoding: Encoding = "float32"  # of that

    @property
    def sent(self) -> Blob:
        """What travels: the encoded blob where there is one."""
        return self.encoded or self.blob


@dataclass(frozen=True)
class Progress:
    """How far an assignment is."""

    assignment_id: str
    samples_done: int
    loss: float
    samples_per_second: float


@dataclass(frozen=True)
class NodeStatus:
    """One node as an operator sees it."""

    name: str
    state: Literal["loading", "idle", "receiving", "training", "sending", "gone", "benched"]
    device: str
    part_index: int  # -1: none
    progress: float  # of its assignment, in [0, 1]
    loss: float
    samples_per_second: float
    bytes_sent: int  # coordinator to node
    bytes_received: int  # node to coordinator


@dataclass(frozen=True)
class Standing:
    """A structure's place in a search, as an operator sees it."""

    structure: str  # its gates in order, 1 for on
    round: int  # after which it was scored last, from 1
    accuracy: float
    loss: float
    parameters: int
    flops: int  # of training, for a sample
    seconds_per_sample: float  # measured
    on_front: bool  # none is better and cheaper


@dataclass(frozen=True)
class RunStatus:
    """The run as an operator sees it."""

    run: str
    phase: Phase
    reason: str  # what it waits for, in a sentence
    round: int
    rounds: int
    parts_in: int
    parts: int
    loss: float  # of the base, on validation data; nan: not evaluated yet
    accuracy: float
    handoff_step: int
    handoff_steps: int
    elapsed_seconds: float
    bytes_sent: int
    bytes_received: int
    nodes: tuple[NodeStatus, ...]
    folder: str
    standings: tuple[Standing, ...] = ()  # of a search over structures, the best first
