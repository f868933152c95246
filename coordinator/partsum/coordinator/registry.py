"""Who is here: each node's session, what it can do, what it is doing, what it has moved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared.errors import RefusedError
from partsum.shared.messages import NodeProfile, NodeStatus, Progress

_QUEUE_LIMIT = 1000  # messages to one node that it has not taken yet
_NODES_LIMIT = 10_000  # that a run remembers

log = logging.getLogger(__name__)

State = Literal["loading", "idle", "receiving", "training", "sending", "gone", "benched"]


@dataclass
class Session:
    """One control stream. What is put into the outbox is sent; None ends the stream."""

    outbox: asyncio.Queue[pb.ControlResponse | None] = field(default_factory=asyncio.Queue)
    closed: bool = False

    def send(self, message: pb.ControlResponse) -> None:
        """Queue a message; dropped after the end: a node that returns is told anew.

        A node that asks and never listens is let go before its queue fills the memory.
        """
        if not self.closed:
            self.outbox.put_nowait(message)
        if self.outbox.qsize() > _QUEUE_LIMIT:
            self.close()

    def close(self) -> None:
        """End the stream after what is queued."""
        if not self.closed:
            self.closed = True
            self.outbox.put_nowait(None)


@dataclass
class Node:
    """A node that has joined the run at least once."""

    name: str
    instance: str
    session: Session | None = None
    profile: NodeProfile | None = None
    state: State = "loading"
    part: int = -1
    assigned_samples: int = 0
    assigned_at: float = 0.0  # seconds of the run
    offered_at: float = 0.0
    progress: Progress | None = None
    last_heard: float = 0.0  # monotonic
    bytes_sent: int = 0
    bytes_received: int = 0
    updates: int = 0
    peak_memory_bytes: int = 0
    speed: float = 0.0  # samples a second, of the last update
    blobs: set[str] = field(default_factory=set)  # what it may pull
    benched: bool = False  # quarantined, for the rest of the run

    def rest(self, state: State = "idle") -> None:
        """It has no assignment any more."""
        self.state, self.part, self.progress = state, -1, None

    def status(self) -> NodeStatus:
        """The node as an operator sees it."""
        progress = self.progress
        share = progress.samples_done / max(1, self.assigned_samples) if progress else 0.0
        return NodeStatus(
            name=self.name,
            state=self.state,
            device=self.profile.device if self.profile else "",
            part_index=self.part,
            progress=min(1.0, share),
            loss=progress.loss if progress else float("nan"),
            samples_per_second=progress.samples_per_second if progress else self.speed,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
        )


class Registry:
    """All nodes of a run, by name; ``known`` is what the journal has of them after a restart."""

    def __init__(self, known: Mapping[str, Mapping[str, Any]]) -> None:
        self._nodes: dict[str, Node] = {}
        for name, body in known.items():
            self._restore(name, body)
        if known and all(node.benched for node in self):  # nobody would be left to train
            log.warning("all nodes were quarantined; each gets another chance in the resumed run")
            for node in self:
                node.benched = False

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, name: str) -> Node | None:
        """The node of that name, if it ever joined."""
        return self._nodes.get(name)

    def _restore(self, name: str, body: Mapping[str, Any]) -> None:
        node = self._nodes[name] = Node(name, str(body["instance"]), state="gone")
        node.bytes_sent, node.bytes_received = int(body["sent"]), int(body["received"])
        node.updates, node.peak_memory_bytes = int(body["updates"]), int(body["peak_memory_bytes"])
        node.speed, node.benched = float(body["speed"]), bool(body.get("benched", False))
        node.profile = NodeProfile(str(body["device"]), 0, 0.0, "", "")

    def memory(self, node: Node) -> dict[str, int | float | str]:
        """What the journal should know of a node."""
        return {
            "instance": node.instance,
            "device": node.profile.device if node.profile else "",
            "sent": node.bytes_sent,
            "received": node.bytes_received,
            "updates": node.updates,
            "peak_memory_bytes": node.peak_memory_bytes,
            "speed": node.speed,
            "benched": node.benched,
        }

    def memories(self) -> dict[str, dict[str, int | float | str]]:
        """The same of all nodes, by name."""
        return {node.name: self.memory(node) for node in self}

    def join(
        self, name: str, instance: str, now: float, heartbeat_seconds: float
    ) -> tuple[Node, Session]:
        """A node says Hello. The same instance replaces its own old connection.

        Raises:
            RefusedError: another live node has this name; where that one has been silent for a
                heartbeat it may be gone, as with a node that has lost its state folder, and this
                one should try again.
        """
        node = self._nodes.get(name)
        if node is not None and node.instance != instance:
            if node.session is not None:
                raise RefusedError(
                    f"a node named {name!r} is already connected from another state folder; "
                    "give this one another --name",
                    retry=now - node.last_heard > heartbeat_seconds,
                )
            node.instance = instance  # its folder was lost; the name is free
        if node is None and len(self._nodes) >= _NODES_LIMIT:
            raise RefusedError(f"this run has seen {_NODES_LIMIT} nodes, and takes no new ones")
        if node is None:
            node = self._nodes[name] = Node(name, instance)
        if node.session is not None:
            node.session.close()
        session = node.session = Session()
        node.last_heard = now
        node.rest("loading")
        return node, session

    def benched(self) -> list[str]:
        """The nodes that get no more work."""
        return [node.name for node in self if node.benched]

    def totals(self) -> tuple[int, int]:
        """Bytes sent to and received from all nodes."""
        nodes = self._nodes.values()
        return sum(n.bytes_sent for n in nodes), sum(n.bytes_received for n in nodes)
