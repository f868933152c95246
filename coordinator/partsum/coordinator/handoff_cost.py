"""What a hand-off over nodes would do, and what it would move: for `partsum plan`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from partsum.coordinator.base import Base
from partsum.coordinator.cost import Cost
from partsum.coordinator.figures import bytes_text
from partsum.coordinator.handoff_plan import total_steps
from partsum.shared.config import RunConfig
from partsum.shared.errors import HandoffError
from partsum.shared.messages import ZeroWay
from partsum.shared.task import Samples, gather, num_samples
from partsum.shared.zero.stages import check_stages, cut_layers

_ENCODED = {"float32": 1.0, "bfloat16": 0.5, "int8": 0.27}  # of float32, as matrices travel
_PROBE_SAMPLES = 2


@dataclass(frozen=True)
class HandoffCost:
    """What one node moves in a round of the hand-off (a commit), one way of doing it.

    ``down`` and ``up`` are from and to the coordinator; of a gang rank 0 alone sends up.
    ``between`` is what it sends to other nodes, the most of any.
    """

    way: ZeroWay
    down: int
    up: int
    between: int


def check_handoff(config: RunConfig, base: Base, train: Samples) -> None:
    """Raise HandoffError where nodes could not train this model as the config says."""
    if config.handoff.is_over("pipeline"):
        stream_bytes(base.task.model(), train, config.parts.count)


def handoff_costs(config: RunConfig, base: Base, whole: Cost, train: Samples) -> list[HandoffCost]:
    """The three ways side by side; the pipeline only where the model has layers for it."""
    ranks = config.parts.count
    steps = max(1, total_steps(config, num_samples(train)) // config.handoff.rounds)
    state = whole.state_bytes
    # Gathers, and a reduction: over gloo an all-reduce, which moves twice what NCCL's would.
    exchanged = 4 if config.handoff.zero_stage == 3 else 3
    gradients = exchanged * 4 * whole.parameters * (ranks - 1) // ranks
    costs = [
        HandoffCost("apart", state, int(_ENCODED[config.wire.up] * state), 0),
        HandoffCost("together", state, state, steps * gradients),
    ]
    try:
        stream = stream_bytes(base.task.model(), train, ranks)
    except HandoffError:
        return costs
    # A stage in the middle sends activations on and gradients back, one at an end only one of them;
    # when the round ends its layers go to rank 0.
    between = (2 if ranks > 2 else 1) * steps * config.handoff.batch_size * stream + state // ranks
    return [*costs, HandoffCost("pipeline", state, state, between)]


def stream_bytes(model: nn.Module, train: Samples, stages: int) -> int:
    """Bytes of one sample that pass the widest of a pipeline's cuts.

    Raises HandoffError where the model is no chain of layers, or one too short for so many stages.
    """
    probe, _ = gather(train, torch.arange(min(_PROBE_SAMPLES, num_samples(train))))
    layers = cut_layers(model, probe)
    check_stages(layers, stages)
    sizes: list[int] = []
    stream: Tensor = probe
    with torch.no_grad():
        for layer in layers:
            stream = layer.module(stream)
            sizes.append(stream[0].numel() * stream.element_size())
    counts = [sum(p.numel() for p in layer.module.parameters()) for layer in layers]
    done = list(accumulate(counts))
    # About where DeepSpeed cuts: each stage has its share of the parameters.
    cuts = [
        min(range(len(done) - 1), key=lambda k: abs(done[k] - done[-1] * stage / stages))
        for stage in range(1, stages)
    ]
    return max((sizes[cut] for cut in cuts), default=0)


def handoff_sentences(config: RunConfig, costs: list[HandoffCost], samples: int) -> Iterator[str]:
    """What the nodes would do, and what each way would move."""
    handoff = config.handoff
    steps = total_steps(config, samples)
    ways = {
        "apart": "each node trains the base by itself, and it takes a Nesterov step along their "
        f"mean change ({handoff.outer_learning_rate:g}, {handoff.outer_momentum:g})",
        "together": "all nodes train one model in step",
        "pipeline": "each node trains its layers of one model",
    }
    yield (
        f"over {config.parts.count} nodes, {handoff.how}: {steps} steps in {handoff.rounds} "
        f"rounds; {ways[handoff.how]}"
    )
    for cost in costs:
        mark = "*" if cost.way == handoff.how else " "
        up = bytes_text(cost.up) + ("" if cost.way == "apart" else " (one node)")
        yield (
            f"{mark} {cost.way}: a round brings each node {bytes_text(cost.down)} and takes {up}; "
            f"between nodes {bytes_text(cost.between) if cost.between else 'nothing'} each"
        )
