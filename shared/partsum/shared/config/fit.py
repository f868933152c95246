"""What the sections of a config, and some keys of [training], ask of the rest of it."""

from __future__ import annotations

from partsum.shared.config.handoff import HandoffConfig
from partsum.shared.config.outer import OuterConfig
from partsum.shared.config.relevance import RelevanceConfig
from partsum.shared.config.start import StartConfig
from partsum.shared.config.trust import MergeConfig, PrivacyConfig
from partsum.shared.config.wire import WireConfig
from partsum.shared.config.work import PartsConfig, RoundsConfig, TrainingConfig
from partsum.shared.secure import LEAST_MEMBERS

_LEAST = {"trimmed_mean": (2, 1), "krum": (2, 3), "multi_krum": (2, 3)}  # a f + b updates


def check_merge(merge: MergeConfig, parts: PartsConfig) -> None:
    """Raise ValueError where the rule cannot hold against so many hostile nodes."""
    if merge.rule != "mean" and parts.is_block:
        raise ValueError(
            f'merge.rule = "{merge.rule}" needs parts that overlap: in mode block each weight '
            'comes from one node alone. Set parts.mode = "residual" or parts.planner = "full"'
        )
    times, more = _LEAST.get(merge.rule, (0, 0))
    least = times * merge.hostile + more
    if parts.count < least:
        raise ValueError(
            f'merge.rule = "{merge.rule}" with hostile = {merge.hostile} needs at least {least} '
            f"parts ({times} x hostile + {more}), but parts.count is {parts.count}: with fewer the "
            "hostile ones could decide. Raise parts.count or lower merge.hostile"
        )


def check_start(start: StartConfig, parts: PartsConfig) -> None:
    """Raise ValueError where nobody would start from the grown base."""
    if not start.models or not parts.rounds:
        return
    if parts.is_copies:
        raise ValueError(
            'start.models does not go with parts.mode = "copies": its base is made anew of copies '
            "each round. Take another mode, or parts.rounds = 0 for the hand-off alone"
        )
    if not parts.is_block:
        return
    if start.grow == "widen":
        raise ValueError(
            'start.grow = "widen" needs parts that start from the base: in mode block each part is '
            'a model of its own. Set parts.planner = "full" or parts.mode = "residual", or '
            "parts.rounds = 0 for the hand-off alone"
        )
    if len(start.models) != parts.count:
        raise ValueError(
            f"start.models has {len(start.models)} entries, but parts.count is {parts.count}: in "
            "mode block part k goes on from model k"
        )
    if parts.fractions == "measured":
        raise ValueError(
            'start.models needs parts.fractions = "equal" or a list in mode block: the models are '
            "as wide as they are, whatever the nodes' speed"
        )


def check_outer(outer: OuterConfig, parts: PartsConfig) -> None:
    """Raise ValueError where there is no change of the base to take a step along."""
    if outer.optimizer != "average":
        key = f'outer.optimizer = "{outer.optimizer}"'
    elif outer.learning_rate is not None:
        key = f"outer.learning_rate = {outer.learning_rate:g}"
    elif outer.layer_scaling is not None:
        key = f"outer.layer_scaling = {list(outer.layer_scaling)}"
    else:
        return
    if parts.is_search:
        raise ValueError(
            f"{key} needs updates that are averaged into the base; with parts.planner = "
            '"structures" they are ranked, and nobody takes a step along their change'
        )
    if parts.is_block:
        raise ValueError(
            f"{key} needs parts that share the base: in mode block "
            "each weight belongs to one part, which goes on from its own last weights and never "
            "from the base, so a step on the base would be lost. Set parts.planner = "
            '"full" or parts.mode = "residual"'
        )
    if parts.is_copies:
        raise ValueError(
            f'{key} does not go with parts.mode = "copies": the '
            'base is made anew of copies each round. Set parts.mode = "residual" or '
            'parts.planner = "full"'
        )
    if parts.aggregate == "gradients":
        raise ValueError(
            f'{key} needs parts.aggregate = "weights": merged '
            "gradients are stepped on by the coordinator's AdamW already, with [training]'s "
            "learning_rate and betas"
        )


def check_proximal(training: TrainingConfig, parts: PartsConfig) -> None:
    """Raise ValueError where no node would be pulled anywhere."""
    if not training.proximal:
        return
    if parts.is_block:
        raise ValueError(
            f"training.proximal = {training.proximal:g} needs parts that start from the base: in "
            "mode block a part goes on from its own last weights, and there is nothing that it "
            'should stay near to. Set parts.planner = "full" or parts.mode = "residual"'
        )
    if parts.aggregate == "gradients":
        raise ValueError(
            f'training.proximal = {training.proximal:g} needs parts.aggregate = "weights": with '
            "gradients a node never leaves its start"
        )


def check_ahead(
    training: TrainingConfig, parts: PartsConfig, wire: WireConfig, deterministic: bool
) -> None:
    """Raise ValueError where what is done ahead would be in vain, or break another promise."""
    if not training.ahead:
        return
    wrong = {
        'needs parts.planner = "full" or parts.mode = "block": elsewhere a part is cut anew from '
        "the base each round, so nobody can begin it before it comes": not (
            parts.is_block or parts.planner == "full"
        ),
        'needs parts.aggregate = "weights": with gradients nodes do not step': (
            parts.aggregate == "gradients"
        ),
        "does not go with training.proximal: what weights are to stay near to comes only with the "
        "next assignment": training.proximal > 0,
        "needs deterministic = false here: how far ahead a node gets depends on time, which shows "
        'in all weights but those of mode block with wire.up = "float32"': deterministic
        and not (parts.is_block and wire.up == "float32"),
    }
    for why, refused in wrong.items():
        if refused:
            raise ValueError(f"training.ahead {why}")


def check_privacy(
    privacy: PrivacyConfig, merge: MergeConfig, parts: PartsConfig, handoff: HandoffConfig
) -> None:
    """Raise ValueError where differential privacy would promise what it does not keep."""
    if not privacy.noise_multiplier:
        return
    reasons = {
        'needs parts.planner = "full": elsewhere a slice comes from one node alone, and '
        "the noise, which is meant for a mean over all nodes, would be too little for it": (
            parts.planner != "full"
        ),
        f'needs merge.rule = "mean", not "{merge.rule}": what is accounted for is noise on the '
        "mean of clipped updates": merge.rule != "mean",
        "needs handoff.enabled = false: the hand-off trains on all data without any noise, and "
        "nothing would be left of the promise": handoff.enabled,
        "does not go with privacy.secure_aggregation: the coordinator clips each update by itself, "
        "so it has to see it": privacy.secure_aggregation,
    }
    for reason, wrong in reasons.items():
        if wrong:
            raise ValueError(f"privacy.noise_multiplier {reason}")


def check_secrecy(
    privacy: PrivacyConfig, merge: MergeConfig, parts: PartsConfig, rounds: RoundsConfig
) -> None:
    """Raise ValueError where masks would not hide what they are there for."""
    if not privacy.secure_aggregation:
        return
    wrong = {
        f'parts.planner is "{parts.planner}", where single nodes\' weights would show; set it to '
        '"full"': parts.planner != "full",
        f"parts.count is {parts.count}; with fewer than {LEAST_MEMBERS} nodes each could take its "
        "own update from the sum": parts.count < LEAST_MEMBERS,
        f"rounds.min_nodes is {rounds.min_nodes}; it needs a node for each of at least "
        f"{LEAST_MEMBERS} parts": (rounds.min_nodes or LEAST_MEMBERS) < LEAST_MEMBERS,
        f'merge.rule is "{merge.rule}", which looks at single updates; only "mean" works on a '
        "sum": merge.rule != "mean",
    }
    for why, refused in wrong.items():
        if refused:
            raise ValueError(f"privacy.secure_aggregation: {why}")


def check_wire(wire: WireConfig, parts: PartsConfig, privacy: PrivacyConfig) -> None:
    """Raise ValueError where fewer bytes would spoil what travels."""
    if wire.up == wire.down == "float32":
        return
    which = f'"{wire.up}"' if wire.up != "float32" else f'"{wire.down}"'
    wrong = {
        f"{which} does not go with privacy.secure_aggregation: masks need every bit of a sum": (
            privacy.secure_aggregation
        ),
        f'{which} does not go with parts.moments = "travel": a second moment that is rounded to '
        "zero would make a step of any size": parts.moments == "travel",
        f'{which} needs parts.aggregate = "weights": a gradient has no start that its change could '
        "be measured from": parts.aggregate == "gradients",
        f"{which} needs parts.local_epochs above 0: without training there is no change to send": (
            parts.local_epochs == 0
        ),
        f'down = "{wire.down}" needs parts.planner = "full" or parts.mode = "residual": in mode '
        "block a part goes on from what its node has, and nothing goes down": (
            wire.down != "float32" and parts.is_block
        ),
        'down = "int8" needs parts.planner = "full": elsewhere nodes start from other weights than '
        'the base, and have no earlier one that its change could be against. Take "bfloat16"': (
            wire.down == "int8" and parts.planner != "full"
        ),
    }
    for why, refused in wrong.items():
        if refused:
            raise ValueError(f"wire: {why}")


def check_relevance(relevance: RelevanceConfig, parts: PartsConfig) -> None:
    """Raise ValueError where units cannot be ranked, or the ranking would be for nothing."""
    if parts.planner != "relevance":
        if relevance != RelevanceConfig():
            raise ValueError(
                f'[relevance] needs parts.planner = "relevance", not "{parts.planner}": nobody '
                "would look at it"
            )
        return
    wrong = {
        f'needs parts.mode = "residual", not "{parts.mode}": there parts start fresh, so none of '
        "their units is stronger than another": parts.mode != "residual",
        'needs parts.aggregate = "weights": a unit that several parts hold counts more often in '
        "the base, and a sum of gradients does not know that": parts.aggregate == "gradients",
        'needs relevance.epochs above 0 with relevance.score = "ard": what ARD says comes from '
        "training": relevance.score == "ard" and relevance.epochs == 0,
        "needs parts.rounds above 0: without a round there are no parts": parts.rounds == 0,
        "needs parts.count above 1: one part holds all units anyway": parts.count == 1,
    }
    for why, refused in wrong.items():
        if refused:
            raise ValueError(f'parts.planner = "relevance" {why}')


def check_study(
    parts: PartsConfig,
    merge: MergeConfig,
    outer: OuterConfig,
    wire: WireConfig,
    privacy: PrivacyConfig,
    handoff: HandoffConfig,
) -> None:
    """Raise ValueError where a study, which makes no base of its parts, is asked to."""
    if not parts.is_study:
        return
    wrong = {
        "handoff.enabled": handoff.enabled,
        "merge": (merge.rule, merge.norm_bound) != ("mean", 0.0),
        "outer": outer != OuterConfig(),
        "wire": wire != WireConfig(),
        "privacy": privacy != PrivacyConfig(),
        "parts.aggregate": parts.aggregate != "weights",
    }
    for name, meant in wrong.items():
        if meant:
            raise ValueError(
                f'parts.planner = "study" makes no base of its parts, so {name} means nothing to '
                "it. Leave the planner to `partsum study`, which sets what a study needs"
            )
