"""What the light nodes of a swarm have in common: their orders, what they hold, what they count."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from partsum.protos.v1 import partsum_pb2 as pb


@dataclass(frozen=True)
class Orders:
    """What a swarm is to do."""

    nodes: int
    rounds: int
    drop: float  # the share of the nodes that drop out in each round
    seed: int


@dataclass
class Crowd:
    """Lives in one event loop, with all of its nodes.

    ``over`` is done when the last round is, or raises why the nodes cannot go on.
    """

    address: str
    orders: Orders
    ready: pb.Ready  # what each node says of itself
    opened: Callable[[], None]  # called as each round begins, and at the end of the last
    blobs: dict[str, bytes] = field(default_factory=dict)  # by digest, once for all nodes
    count: Counter[str] = field(default_factory=Counter)
    joined_at: float = 0.0  # monotonic, when the last of all nodes was welcome
    words: str = ""  # the last thing that went wrong
    over: asyncio.Future[None] = field(default_factory=asyncio.Future)
    _welcome: set[str] = field(default_factory=set)
    _rounds: set[int] = field(default_factory=set)

    def welcome(self, node: str) -> None:
        """A node has joined, or is back."""
        self._welcome.add(node)
        if len(self._welcome) == self.orders.nodes and not self.joined_at:
            self.joined_at = time.monotonic()

    @property
    def joined(self) -> int:
        """How many nodes have joined so far."""
        return len(self._welcome)

    def begin(self, round: int) -> bool:
        """A node was given a part of that round; whether the round is one of the swarm's."""
        if self.over.done():
            return False
        if round in self._rounds:
            return True
        if len(self._rounds) == self.orders.rounds:
            self.end()
            return False
        self._rounds.add(round)
        self.opened()
        return True

    def end(self) -> None:
        """The rounds are done, or the run is."""
        if not self.over.done():
            self.opened()
            self.over.set_result(None)

    def fail(self, error: Exception) -> None:
        """No node can go on."""
        if not self.over.done():
            self.over.set_exception(error)

    def note(self, kind: str, words: object = "") -> None:
        """Something happened to a node; ``words`` say what went wrong, where it did."""
        self.count[kind] += 1
        self.words = str(words) or self.words
