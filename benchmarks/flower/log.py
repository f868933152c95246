"""What Flower's own log says of its rounds.

The app puts the time in front of each line:

    1795475723.839050 [ROUND 1/4]
    1795475733.464402 aggregate_train: Received 2 results and 0 failures
    1795475765.289220 Strategy execution finished in 41.45s
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.flower.environment import FlowerError

_LINE = re.compile(
    r"^(?P<seconds>\d+\.\d+) (?:\[ROUND (?P<round>\d+)/\d+\]"
    r"|aggregate_train: Received (?P<results>\d+) results and (?P<failures>\d+) failures"
    r"|(?P<finished>Strategy execution finished))",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Rounds:
    """The rounds in a log: when each began, how many replies each counted, when all were done."""

    began: tuple[float, ...]
    results: tuple[int, ...]
    ended: float | None

    def seconds(self, nodes: int) -> list[float]:
        """Seconds of every round, the first one too.

        Raises:
            FlowerError: they did not come to their end, or one of them went on without a node.
        """
        if self.ended is None:
            raise FlowerError(f"it ended in round {len(self.began)}, {len(self.results)} were done")
        partial = [number for number, count in enumerate(self.results, 1) if count != nodes]
        if partial or len(self.results) != len(self.began):
            raise FlowerError(
                f"rounds {partial} went on without all {nodes} nodes' replies: {self.results}"
            )
        return [after - before for before, after in pairwise((*self.began, self.ended))]


def read_rounds(log: str) -> Rounds:
    """The rounds that a log tells of, of which the last may be open still."""
    found = list(_LINE.finditer(log))
    return Rounds(
        began=tuple(float(m["seconds"]) for m in found if m["round"]),
        results=tuple(int(m["results"]) for m in found if m["results"]),
        ended=next((float(m["seconds"]) for m in found if m["finished"]), None),
    )
