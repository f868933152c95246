"""The run's configuration: TOML into frozen models, and what is wrong said in words.

Each field is followed by what it does; docs/configuration.md is generated from these lines.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from partsum.shared.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A table of run.toml: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class TaskConfig(Section):
    """What is trained."""

    name: str = "partsum.shared.tasks:digits"
    """The task, as package.module:function. Nodes must have the same one installed."""
    options: dict[str, int | float | str | bool | list[int]] = {}
    """Keyword arguments of the task function."""


class DataConfig(Section):
    """Which samples each part sees in the parts phase."""

    clusters: Literal["iid", "labels", "kmeans", "natural"] = "iid"
    """iid: random; labels: Dirichlet label skew; kmeans: balanced k-means; natural: by key."""
    label_alpha: Annotated[float, Field(gt=0)] = 0.3
    """Dirichlet concentration of `labels`: small is skewed, large is iid."""
    features: Literal["raw", "pca", "task"] = "pca"
    """What `kmeans` looks at: raw inputs, their first 32 principal components, or the task's own
    features."""
    stream: bool = False
    """Send a cluster's samples to nodes that have no copy of the data set."""


class PartsConfig(Section):
    """How the base is cut, and the rounds of the parts phase."""

    planner: Literal["complement", "full"] = "complement"
    """complement: disjoint parts that cover the width; full: federated averaging of the base."""
    mode: Literal["block", "residual"] = "block"
    """block: slice every width axis, once and for all; residual: slice hidden axes, re-drawn each
    round."""
    count: Positive = 4
    """How many parts. Fewer nodes than parts take several each, one after the other."""
    fractions: Literal["equal", "measured"] | list[Fraction] = "equal"
    """Each part's share of the width: equal, by each node's measured speed and memory, or a list
    that adds up to 1."""
    rounds: Annotated[int, Field(ge=0)] = 4
    """Rounds of the parts phase; 0 goes straight to the hand-off."""
    local_epochs: NotNegative = 1.0
    """Passes over a part's cluster in each round; fractions of a pass are fine."""
    aggregate: Literal["weights", "gradients"] = "weights"
    """weights: merge what nodes trained; gradients: merge mean gradients, step on the
    coordinator."""
    gradient_batches: Positive = 8
    """With `aggregate = "gradients"`: batches whose mean gradient makes one update."""
    evaluate_every: Annotated[int, Field(ge=0)] = 1
    """Evaluate the merged base after each n-th round; 0 only after the last."""

    @model_validator(mode="after")
    def _fits_together(self) -> PartsConfig:
        if isinstance(self.fractions, list):
            if len(self.fractions) != self.count:
                raise ValueError(
                    f"fractions has {len(self.fractions)} entries, but count is {self.count}"
                )
            if abs(sum(self.fractions) - 1) > 1e-6:
                raise ValueError(
                    f"fractions add up to {sum(self.fractions):g}; complementary parts must keep "
                    "the whole width between them, so they have to add up to 1"
                )
        if self.aggregate == "gradients" and self._is_block:
            raise ValueError(
                'aggregate = "gradients" needs mode = "residual" or planner = "full": in mode '
                '"block" parts share no parameters, so there is no gradient to add up'
            )
        return self

    @property
    def _is_block(self) -> bool:
        return self.planner == "complement" and self.mode == "block"


class TrainingConfig(Section):
    """How a node trains its part."""

    batch_size: Positive = 64
    """Samples in a batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of the full model; parts scale it by width (`width_lr_power`)."""
    width_lr_power: NotNegative = 0.5
    """Matrices cut on both sides to a fraction f train at learning_rate / f ** power: 0.5 is the
    square-root rule, 1 is muP's, better when the parts phase is short."""
    weight_decay: NotNegative = 0.01
    """AdamW's decoupled weight decay."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """AdamW's decay rates of the first and second moment."""
    gradient_clip: NotNegative = 0.0
    """Clip the gradient's norm to this; 0 does not clip."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the run's schedule with a linear warm-up; cosine decay to zero after it."""
    parts_share: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = "auto"
    """Where on the schedule the hand-off starts; auto computes it from the FLOPs of both phases."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains under autocast; weights stay float32."""

    @model_validator(mode="before")
    @classmethod
    def _betas_are_a_pair(cls, values: Any) -> Any:
        betas = values.get("betas") if isinstance(values, dict) else None
        return {**values, "betas": tuple(betas)} if isinstance(betas, list) else values


class RoundsConfig(Section):
    """When a round starts, and when it stops waiting."""

    min_nodes: Positive | None = None
    """Start once this many nodes are ready; by default as many as there are parts."""
    join_timeout_seconds: NotNegative = 120.0
    """Start with the nodes that are there after this long, if there is at least one."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the parts that must be in before a deadline may close the round."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """A round older than this closes with the updates that are in, if they make a quorum."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Nodes say this often that they live; three missed and the node counts as gone."""
    return_seconds: NotNegative | None = None
    """A lost node's part waits this long for it before another may take it; by default two
    heartbeats. A node that is back in time goes on exactly where it was."""
    refusals: Positive = 3
    """After this many refused or failed updates in a row a node gets no more work."""


class HandoffConfig(Section):
    """DeepSpeed's part of the run."""

    enabled: bool = True
    """Hand the merged base to DeepSpeed when the rounds are done."""
    epochs: NotNegative = 2.0
    """Passes over all of the training data."""
    batch_size: Positive = 64
    """Samples in a global batch, over all ranks."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; by default training.learning_rate."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO: what is sharded over ranks: 1 optimizer state, 2 gradients too, 3 parameters too."""
    offload: bool = True
    """Keep optimizer state and step in host memory (ZeRO-Offload, DeepSpeedCPUAdam)."""
    local_world_size: Positive = 1
    """Ranks on the coordinator's host; one for each GPU there."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 uses DeepSpeed's torch_autocast; weights stay float32."""
    deepspeed_config: str | None = None
    """A DeepSpeed JSON file of your own, taken as it is; relative to run.toml."""
    checkpoint_every_steps: Positive = 200
    """Steps between DeepSpeed checkpoints; a killed hand-off goes on from the newest."""
    evaluations: Annotated[int, Field(ge=0)] = 4
    """How often the hand-off evaluates on its way, beside once at its end."""
    norms: Literal["plain", "grouped"] = "plain"
    """Mode block: layer norms over the whole width, as in your model, or over each part's slice, as
    trained (0.3-0.8 points better for a small ViT, but then part of the final model)."""


class ServerConfig(Section):
    """Where the coordinator listens."""

    host: str = "127.0.0.1"
    """Address to listen on. Other than loopback needs `insecure = true` for now."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50061
    """gRPC port for nodes and operators; 0 takes a free one."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """HTTP port for /metrics and /healthz; 0 takes a free one."""
    insecure: bool = False
    """Listen beyond loopback without any authentication. Only on a network you trust."""

    @model_validator(mode="after")
    def _loopback_or_said(self) -> ServerConfig:
        if self.host not in {"127.0.0.1", "localhost", "::1"} and not self.insecure:
            raise ValueError(
                f"host = {self.host!r} can be reached by others, who could then fetch the model. "
                "Keep 127.0.0.1 and let nodes in by an SSH tunnel or VPN, or say insecure = true "
                "on a network that you trust"
            )
        return self


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "run"
    """The run's name, part of its folder's name."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """All randomness comes from this number."""
    deterministic: bool = True
    """Same seed, same bytes: deterministic algorithms, updates merged in a fixed order."""
    folder: str = "runs"
    """Where run folders are made; relative to where the coordinator starts."""
    keep_bases: Annotated[int, Field(ge=0)] = 3
    """How many of the newest base versions to keep; 0 keeps all."""
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    parts: PartsConfig = PartsConfig()
    training: TrainingConfig = TrainingConfig()
    rounds: RoundsConfig = RoundsConfig()
    handoff: HandoffConfig = HandoffConfig()
    server: ServerConfig = ServerConfig()

    @model_validator(mode="after")
    def _quorum_of_nodes(self) -> RunConfig:
        if not self.handoff.enabled and self.parts.rounds == 0:
            raise ValueError("parts.rounds is 0 and handoff.enabled is false: nothing to do")
        return self


def load_config(path: Path) -> RunConfig:
    """Read a run.toml.

    Raises:
        ConfigError: no such file, not TOML, an unknown key (the nearest right one is named), or a
            value that cannot be used. All that is wrong is said at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the config {path}: {reason}") from error
    return parse_config(text, source=str(path))


def parse_config(text: str, source: str = "run.toml") -> RunConfig:
    """Parse the text of a run.toml; ``source`` names it in errors. Raises ConfigError."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = sorted({_explain(problem) for problem in error.errors(include_url=False)})
        raise ConfigError(f"{source} cannot be used:\n  " + "\n  ".join(lines)) from error


def _explain(problem: ErrorDetails) -> str:
    """One pydantic problem as a line for a person."""
    location = _keys(problem["loc"])
    where = ".".join(location) or "the file"
    if problem["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        known = list(section.model_fields) if section else []
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    return f"{where}: {problem['msg']} (got {problem['input']!r})"


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The TOML keys of a pydantic location, without the names of types that it ends in."""
    keys: list[str] = []
    for name in map(str, location):
        table = _section_at(keys)
        if table is None and keys[-1] != "options":
            break
        keys.append(name)
    return keys


def _section_at(location: list[str]) -> type[BaseModel] | None:
    """The table at ``location``; None where there is a value."""
    section: type[BaseModel] = RunConfig
    for name in location:
        inner = section.model_fields[name].annotation if name in section.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        section = inner
    return section
