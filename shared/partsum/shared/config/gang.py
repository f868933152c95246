"""Nodes that train in step, and what they do together before the hand-off."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from partsum.shared.config.section import Section
from partsum.shared.config.structures import StructuresConfig
from partsum.shared.config.trust import LOOPBACK, ServerConfig
from partsum.shared.config.work import PartsConfig


class GangConfig(Section):
    """Gangs: nodes that exchange tensors with each other, by torch.distributed (docs/gangs.md)."""

    trusted: bool = False
    """The network between the nodes may be trusted. torch.distributed neither encrypts nor asks who
    is there, so beyond loopback nothing trains in a gang without this (a VPN such as WireGuard
    makes any network one)."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """auto: NCCL where every member trains on a GPU, else gloo. Two members on one GPU need
    gloo."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long a member waits for the others, to meet and in each exchange. A node that is lost is
    noticed sooner, by its heartbeats."""


class CotrainConfig(Section):
    """Co-training: after the search the best structures train in step, on weights that they share.

    Each node trains one structure; gradients of a weight are averaged over the structures that
    have it.
    """

    rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds of co-training after those of the search; 0: none. A gang that breaks goes on from the
    last round's base."""
    structures: Annotated[int, Field(ge=2)] = 4
    """How many of the best structures take part, each on a node of its own; with fewer nodes, as
    many as there are nodes."""
    local_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training data that all members make together in a round."""


def check_gang(
    gang: GangConfig,
    cotrain: CotrainConfig,
    parts: PartsConfig,
    structures: StructuresConfig,
    server: ServerConfig,
) -> None:
    """Raise ValueError where a gang has nothing to train, or would talk where others listen."""
    if not cotrain.rounds:
        return
    if not parts.is_search or not parts.rounds:
        raise ValueError(
            f"cotrain.rounds = {cotrain.rounds} needs a search whose best structures it trains: "
            'parts.planner = "structures", and parts.rounds above 0'
        )
    if cotrain.structures > structures.candidates:
        raise ValueError(
            f"cotrain.structures = {cotrain.structures} is more than structures.candidates = "
            f"{structures.candidates}; take at most as many as are searched"
        )
    if structures.data == "clusters":
        raise ValueError(
            'cotrain needs structures.data = "same": weights that are shared are trained on all '
            "of the data"
        )
    check_trust(gang, server)


def check_trust(gang: GangConfig, server: ServerConfig) -> None:
    """Raise ValueError where nodes would talk in the clear on a network that nobody vouches for."""
    if server.host not in LOOPBACK and not (gang.trusted or server.insecure):
        raise ValueError(
            f"nodes are to train in a gang, and server.host = {server.host!r} lets them be on "
            "other hosts: what they tell each other is in the clear, weights and gradients too. "
            "Say gang.trusted = true under [gang] where only your own hosts are on that network, "
            "as in a VPN"
        )
