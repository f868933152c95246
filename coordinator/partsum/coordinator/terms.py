"""A run's terms: what its config asks of the round machine and of its nodes. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from partsum.coordinator.events import RoundSettings
from partsum.coordinator.phases import gang_rounds, total_rounds
from partsum.coordinator.records import HandoffSteps, RoundPlan
from partsum.shared import limits
from partsum.shared.config import RunConfig
from partsum.shared.errors import RefusedError
from partsum.shared.messages import (
    Assignment,
    Encoding,
    NodeProfile,
    Regularisation,
    TrainSettings,
    ZeroWork,
)
from partsum.shared.secure import LEAST_MEMBERS

_ANEW = "DeepSpeed's moments begin anew, and the weights will not be those of an undisturbed run"
TEXT_LIMIT = 200  # characters of what a node calls itself, its version or its device


def round_settings(config: RunConfig) -> RoundSettings:
    """The round machine's view of the config."""
    parts, rounds, secure = config.parts, config.rounds, config.privacy.secure_aggregation
    quorum = 1 if parts.is_search else math.ceil(rounds.quorum * parts.count)
    return RoundSettings(
        rounds=total_rounds(config),
        min_nodes=rounds.min_nodes or parts.count,
        join_timeout_seconds=rounds.join_timeout_seconds,
        quorum=quorum,
        deadline_seconds=rounds.deadline_seconds,
        return_seconds=_return_seconds(config),
        backup_after=rounds.backup_after,
        refusals=rounds.refusals,
        handoff=config.handoff.enabled,
        sticky=needs_its_node(config) or _keeps_moments(config),
        pinned=secure,
        least=max(LEAST_MEMBERS, quorum) if secure else 0,
        spare=parts.is_study,
        gangs=gang_rounds(config),
    )


def needed_updates(config: RunConfig, parts: int) -> int:
    """Without how many updates a round of so many parts cannot close, beside the quorum."""
    return math.ceil(config.rounds.quorum * parts) if config.parts.is_search else 0


def moments_travel(config: RunConfig, round: int) -> bool:
    """Whether the updates of a round hold AdamW's moments too."""
    return config.parts.moments == "travel" and round not in gang_rounds(config)


def needs_its_node(config: RunConfig) -> bool:
    """Whether only the node that trained a part before can go on with the same bytes.

    It alone has the part's moments (modes block and copies, and structures), or what encoding the
    last update lost.
    """
    parts = config.parts
    own = parts.is_block or parts.is_search
    moments = parts.is_copies or (own and parts.moments == "local")
    residuals = config.wire.up != "float32" and parts.planner == "full"
    return config.deterministic and (moments or residuals)


def _keeps_moments(config: RunConfig) -> bool:
    """Whether the hand-off's nodes keep DeepSpeed's moments, which its bytes depend on."""
    return config.deterministic and config.handoff.over_nodes


def why_moved(config: RunConfig, plan: RoundPlan, part: int, node: str) -> str:
    """What is lost when that node trains the part; empty: nothing."""
    planned = plan.parts[part]
    if plan.handoff is not None:  # of a gang, `why_anew` tells
        moved = config.handoff.is_over("apart") and plan.handoff.first and planned.holder != node
        return f"part {part} goes to {node}: {_ANEW}" if moved else ""
    goes_on = planned.start is not None and _goes_on(config, plan.round)
    if not goes_on or planned.holder == node:
        return ""
    what = "encoding's losses" if config.parts.planner == "full" else "moments"
    where = f"are with {planned.holder}" if planned.holder else "may be lost"
    return (
        f"part {part} goes to {node}, but its {what} {where}: the weights will not be those of an "
        "undisturbed run"
    )


def _goes_on(config: RunConfig, round: int) -> bool:
    """Whether a round's parts go on from what only their nodes have.

    A gang's first round begins without moments, and from then on they stay with its members.
    """
    gangs = gang_rounds(config)
    if round in gangs:
        return config.deterministic and round > gangs.start
    return needs_its_node(config) and round > 0


def why_anew(plan: RoundPlan, parts: Sequence[int], nodes: Mapping[int, str]) -> str:
    """What a gang of the hand-off loses by being another than the last one; empty: nothing."""
    if plan.handoff is None or not plan.handoff.first:
        return ""
    before = {k: planned.holder for k, planned in enumerate(plan.parts) if planned.holder}
    return "" if {part: nodes[part] for part in parts} == before else f"another gang: {_ANEW}"


def _return_seconds(config: RunConfig) -> float:
    if config.rounds.return_seconds is not None:
        return config.rounds.return_seconds
    own = needs_its_node(config) or (config.deterministic and len(gang_rounds(config)) > 0)
    return 60.0 if own else 2 * config.rounds.heartbeat_seconds


def check_texts(**texts: str) -> None:
    """Raise RefusedError where a node's word for itself is too long, or would garble a log."""
    for name, text in texts.items():
        if len(text) > TEXT_LIMIT or not text.isprintable():
            raise RefusedError(
                f"this node's {name} must have {TEXT_LIMIT} printable characters at most; it has "
                f"{len(text)} and begins with {text[:20]!r}"
            )


def check_encodings(config: RunConfig, known: Set[Encoding], version: str) -> None:
    """Raise RefusedError where a node could not read, or write, what travels in this run."""
    missing = {config.wire.up, config.wire.down} - known
    if missing:
        raise RefusedError(
            f"this run's weights travel as {' and '.join(sorted(missing))}, which this node does "
            f"not know; install the coordinator's partsum on it (it has {version})"
        )


def check_profile(config: RunConfig, digests: tuple[str, str], profile: NodeProfile) -> None:
    """Raise RefusedError where a node's task or data are not the run's (``digests``, in order), or
    what it says of its device makes no sense."""
    task_digest, data_digest = digests
    check_texts(
        device=profile.device, task_digest=profile.task_digest, data_digest=profile.data_digest
    )
    if not 0 <= profile.memory_bytes <= limits.COUNT or not 0 <= profile.gflops <= limits.GFLOPS:
        raise RefusedError(
            f"this node claims {profile.memory_bytes} B of memory and {profile.gflops} GFLOP/s, "
            "which no device has"
        )
    if config.handoff.over_nodes and not profile.deepspeed:
        raise RefusedError(
            "the nodes of this run train its hand-off with DeepSpeed, which this node does not "
            "have: install partsum[handoff] on it (scripts/build_deepspeed.sh builds its ops), or "
            'set handoff.over = "host" in run.toml'
        )
    if profile.task_digest != task_digest:
        raise RefusedError(
            f"this node has another version of the task {config.task.name} or of "
            "partsum; install the coordinator's on it"
        )
    if not profile.data_digest and not config.data.stream:
        raise RefusedError(
            "this node has no copy of the training data; put it where the task looks for it, "
            "or let the coordinator send samples with stream = true under [data]"
        )
    if profile.data_digest and profile.data_digest != data_digest:
        raise RefusedError(
            f"this node's training data is not the coordinator's (digest "
            f"{profile.data_digest[:8]}, expected {data_digest[:8]}); copy it over, or "
            "remove it and set stream = true under [data]"
        )


def train_settings(config: RunConfig) -> TrainSettings:
    """How nodes train."""
    training = config.training
    return TrainSettings(
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        width_lr_power=training.width_lr_power,
        weight_decay=training.weight_decay,
        betas=training.betas,
        gradient_clip=training.gradient_clip,
        warmup=training.warmup,
        precision=training.precision,
        aggregate=config.parts.aggregate,
        deterministic=config.deterministic,
        carry_moments=config.parts.moments == "travel",
        proximal=training.proximal,
        encoding=config.wire.up,
        keep_moments=config.parts.is_copies,
        regularisation=Regularisation(**config.regularisation.model_dump()),
    )


def _settings(config: RunConfig, plan: RoundPlan) -> TrainSettings:
    """Those of a round. In a gang moments stay with its members, from its second round on."""
    settings, gangs = train_settings(config), gang_rounds(config)
    if plan.handoff is not None:  # whose moments are DeepSpeed's
        return replace(settings, batch_size=plan.handoff.batch)
    if plan.round not in gangs:
        return settings
    return replace(settings, carry_moments=False, keep_moments=plan.round > gangs.start)


def assignment(config: RunConfig, plan: RoundPlan, index: int) -> Assignment:
    """One part of a round as it goes to a node."""
    planned = plan.parts[index]
    return Assignment(
        id=f"r{plan.round}-p{index}",
        round=plan.round,
        part_index=index,
        part=planned.part,
        seed=planned.seed,
        start=planned.start,
        cluster=planned.cluster,
        samples=None,
        first_sample=planned.first_sample,
        num_samples=planned.num_samples,
        progress=plan.progress,
        settings=_settings(config, plan),
        start_delta=planned.delta,
        ahead_to=plan.ahead_to,
        zero=_zero_work(config, plan.handoff) if plan.handoff else None,
    )


def _zero_work(config: RunConfig, steps: HandoffSteps) -> ZeroWork:
    """What DeepSpeed is to do in a round of the hand-off."""
    handoff = config.handoff
    return ZeroWork(
        way=handoff.how,
        stage=handoff.zero_stage,
        offload=handoff.offload,
        micro_batches=handoff.micro_batches,
        first_step=steps.first,
        steps=steps.count,
        total_steps=steps.total,
        share=steps.share,
        norm_parts=steps.norm_parts,
        own_data=handoff.data == "clusters" and handoff.how == "together",
        start_before=steps.start_before,
    )
