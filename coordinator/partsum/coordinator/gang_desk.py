"""The desk's part in gangs: their names and secrets, and where their members meet."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from partsum.coordinator import events as e
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.registry import Node, Registry
from partsum.coordinator.store import Store
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import limits
from partsum.shared.config import GangConfig
from partsum.shared.errors import ConfigError, WireError
from partsum.shared.messages import Backend, GangPlace
from partsum.shared.transport import split_address

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenGang:
    """The gang that trains the open round; ``parts`` by rank."""

    round: int
    generation: int
    parts: tuple[int, ...]
    backend: Backend
    secret: str
    address: str = ""  # where its members meet, once rank 0's node has said so

    @property
    def id(self) -> str:
        """Its name."""
        return f"r{self.round}-g{self.generation}"


class GangDesk:
    """Keeps one run's gangs; what a restarted coordinator must know of one is in the journal."""

    def __init__(self, store: Store, registry: Registry, config: GangConfig) -> None:
        self._store = store
        self._registry = registry
        self._config = config
        self.gang: OpenGang | None = None

    def restore(self, round: int) -> e.Formed | None:
        """The gang that trained the round before a restart, if there was one."""
        noted = self._store.fact("gang")
        self.gang = None
        if noted is None or noted["round"] != round:
            return None
        self.gang = OpenGang(**{**noted, "parts": tuple(noted["parts"])})
        return e.Formed(self.gang.generation, self.gang.parts)

    def form(self, round: int, formed: e.Formed, nodes: Mapping[int, str]) -> None:
        """Name a new gang; ``nodes`` has the node of each part."""
        members = [self._registry.get(nodes[part]) for part in formed.parts]
        backend = self._backend([m.profile.device for m in members if m and m.profile])
        secret = secrets.token_hex(16)
        self.gang = OpenGang(round, formed.generation, formed.parts, backend, secret)
        noted = {key: value for key, value in vars(self.gang).items() if key != "address"}
        self._store.note(gang=noted)
        names = ", ".join(nodes[part] for part in formed.parts)
        log.info("gang %s: %s, over %s", self.gang.id, names, backend)

    def _backend(self, devices: list[str]) -> Backend:
        if self._config.backend != "auto":
            return self._config.backend
        on_gpus = devices and all(device.startswith("cuda") for device in devices)
        return "nccl" if on_gpus else "gloo"

    def place(self, plan: RoundPlan, part: int) -> GangPlace | None:
        """A part's place in the open gang; None where the round has none."""
        gang = self.gang
        if gang is None or gang.round != plan.round or part not in gang.parts:
            return None
        return GangPlace(
            id=gang.id,
            rank=gang.parts.index(part),
            parts=tuple(plan.parts[k].part for k in gang.parts),
            backend=gang.backend,
            secret=gang.secret,
            timeout_seconds=self._config.timeout_seconds,
        )

    def opened(self, node: Node, message: pb.GangOpened, nodes: Mapping[int, str]) -> None:
        """Rank 0 waits for the others there: they are told.

        Raises WireError where that is no address: the others would fail on it.
        """
        gang = self.gang
        if gang is None or message.gang != gang.id or nodes.get(gang.parts[0]) != node.name:
            return  # of one that broke
        address = _checked(message.address)
        self.gang = replace(gang, address=address)
        log.info("gang %s meets at %s", gang.id, address)
        for part in gang.parts[1:]:
            if (other := self._registry.get(nodes.get(part, ""))) is not None:
                self.tell(other, part)

    def tell(self, node: Node, part: int) -> None:
        """Where to meet, if that is known already, and the node's part is not rank 0's."""
        gang = self.gang
        if gang is None or not gang.address or part not in gang.parts[1:] or node.session is None:
            return
        meet = pb.GangMeet(gang=gang.id, address=gang.address)
        node.session.send(pb.ControlResponse(gang_meet=meet))


def _checked(address: str) -> str:
    try:
        split_address(limits.short(address, "a gang's address"))
    except ConfigError as error:
        raise WireError(f"a gang cannot meet there: {limits.in_words(str(error))}") from error
    if not address.isprintable():
        raise WireError("a gang's address holds what would garble a log")
    return address
