"""What [merge] and [privacy] ask of the rest of a config."""

from __future__ import annotations

from partsum.shared.config.trust import MergeConfig, PrivacyConfig
from partsum.shared.config.work import HandoffConfig, PartsConfig, RoundsConfig
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
