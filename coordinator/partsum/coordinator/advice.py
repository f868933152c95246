"""What a valid config had better not say: said before anything is spent."""

from __future__ import annotations

from partsum.shared.config import RunConfig


def advise(config: RunConfig) -> list[str]:
    """A sentence for each thing that is allowed but was measured to end badly."""
    block = config.parts.planner == "complement" and config.parts.mode == "block"
    if not block or config.data.clusters == "iid" or config.handoff.enabled:
        return []
    return [
        f'clusters = "{config.data.clusters}" without a hand-off: the mean of parts that each saw '
        "other data is poor (70-76 % where a hand-off reached 86 %); enable the hand-off, or use "
        'clusters = "iid"'
    ]
