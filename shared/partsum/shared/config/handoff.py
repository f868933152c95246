"""The hand-off: what DeepSpeed is asked for, and where it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from partsum.shared.config.gang import GangConfig, check_trust
from partsum.shared.config.section import NotNegative, Positive, Section
from partsum.shared.config.trust import PrivacyConfig, ServerConfig
from partsum.shared.config.work import PartsConfig

_OF_THE_HOST = ("local_world_size", "checkpoint_every_steps", "restarts", "evaluations")


class HandoffConfig(Section):
    """DeepSpeed's part of the run."""

    enabled: bool = True
    """Hand the merged base to DeepSpeed when the rounds are done."""
    over: Literal["host", "nodes"] = "host"
    """host: DeepSpeed trains on the coordinator's host; nodes: on the nodes, in further rounds."""
    how: Literal["apart", "together", "pipeline"] = "apart"
    """With over = "nodes". apart: each node trains the whole base by itself between commits, and
    the base takes a Nesterov step along their mean change (DiLoCo; for slow links); together: one
    data-parallel group over all nodes, which exchanges gradients at each step; pipeline: each node
    holds some of the model's layers, and activations travel."""
    rounds: Positive = 4
    """With over = "nodes": commits that the epochs are split into. What a lost node costs is the
    open one; with how = "apart" it is also how often the nodes agree."""
    data: Literal["shuffled", "clusters"] = "shuffled"
    """With over = "nodes": each node sees an equal share of all data, shuffled, or its own cluster
    of the parts phase. A pipeline's nodes all see the same samples, of all data."""
    outer_learning_rate: Annotated[float, Field(gt=0)] = 0.7
    """With how = "apart": how far the base goes along the nodes' mean change; 1 with
    outer_momentum = 0 averages."""
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """With how = "apart": how much of its speed the base keeps from commit to commit."""
    micro_batches: Positive = 4
    """With how = "pipeline": pieces that a batch is cut into, so that stages work at once."""
    epochs: NotNegative = 2.0
    """Passes over all of the training data."""
    batch_size: Positive = 64
    """Samples in a global batch, over all ranks; over nodes each has its equal share of it."""
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
    restarts: Annotated[int, Field(ge=0)] = 3
    """A job that dies is started again from its newest checkpoint, but at most this many times in a
    row without getting any further."""
    evaluations: Annotated[int, Field(ge=0)] = 4
    """How often the hand-off evaluates on its way, beside once at its end."""
    norms: Literal["plain", "grouped"] = "plain"
    """Mode block: layer norms over the whole width, as in your model, or over each part's slice, as
    trained (0.3-0.8 points better for a small ViT, but then part of the final model)."""

    @property
    def over_nodes(self) -> bool:
        """Whether the nodes train it, in rounds of their own."""
        return self.enabled and self.over == "nodes"

    def is_over(self, how: str) -> bool:
        """Whether the nodes train it that way."""
        return self.over_nodes and self.how == how


def check_handoff(
    handoff: HandoffConfig,
    parts: PartsConfig,
    privacy: PrivacyConfig,
    gang: GangConfig,
    server: ServerConfig,
) -> None:
    """Raise ValueError where the nodes could not do what the hand-off asks of them."""
    if handoff.enabled:
        _check_nothing_in_vain(handoff)
    if not handoff.over_nodes:
        return
    wrong = {
        "does not go with handoff.deepspeed_config: a file of your own may name paths and plugins, "
        "which nodes take from nobody. Take the other keys of [handoff], or over = "
        '"host"': handoff.deepspeed_config is not None,
        "does not go with privacy.secure_aggregation: the hand-off's updates are the whole model, "
        'and are not masked. Take over = "host"': privacy.secure_aggregation,
        f"needs handoff.batch_size of at least parts.count = {parts.count}: each node sees its "
        f"share of it, and {handoff.batch_size} leaves none for some": (
            handoff.how != "pipeline" and handoff.batch_size < parts.count
        ),
    }
    for why, refused in wrong.items():
        if refused:
            raise ValueError(f'handoff.over = "nodes" {why}')
    _check_pipeline(handoff)
    if handoff.how != "apart":
        check_trust(gang, server)


def _check_nothing_in_vain(handoff: HandoffConfig) -> None:
    """What is set for one way would be silently forgotten in another."""
    ways = {
        "how": ("over nodes", handoff.over_nodes),
        "rounds": ("over nodes", handoff.over_nodes),
        "data": ("over nodes", handoff.over_nodes and handoff.how != "pipeline"),
        "outer_learning_rate": ("apart", handoff.is_over("apart")),
        "outer_momentum": ("apart", handoff.is_over("apart")),
        "micro_batches": ("pipeline", handoff.is_over("pipeline")),
        **dict.fromkeys(_OF_THE_HOST, ("host", not handoff.over_nodes)),
    }
    for key, (way, used) in ways.items():
        if key in handoff.model_fields_set and not used and _differs(handoff, key):
            where = 'over = "host"' if way == "host" else 'over = "nodes"'
            where += f' and how = "{way}"' if way in {"apart", "pipeline"} else ""
            raise ValueError(
                f"handoff.{key} = {getattr(handoff, key)!r} means nothing without {where}; set "
                "that, or remove the key"
            )


def _differs(handoff: HandoffConfig, key: str) -> bool:
    return bool(getattr(handoff, key) != HandoffConfig.model_fields[key].default)


def _check_pipeline(handoff: HandoffConfig) -> None:
    if handoff.how != "pipeline":
        return
    if handoff.zero_stage != 1:
        raise ValueError(
            f'handoff.how = "pipeline" needs handoff.zero_stage = 1, not {handoff.zero_stage}: '
            "DeepSpeed's pipeline keeps gradients whole over a batch's pieces, and without ZeRO "
            "clips them by the first stage's alone"
        )
    if handoff.precision != "float32":
        raise ValueError(
            f'handoff.how = "pipeline" needs handoff.precision = "float32", not '
            f'"{handoff.precision}": its stages hand each other what they compute in'
        )
    if handoff.batch_size % handoff.micro_batches:
        raise ValueError(
            f"handoff.batch_size = {handoff.batch_size} does not split into "
            f"handoff.micro_batches = {handoff.micro_batches} pieces"
        )
