"""The search over structures: what each rung trains, where a structure goes on from, who is best.

Nothing is merged between structures. Each goes on from its own last update, which is kept beside
the bases; the base of every round is the one before with the best structure's weights put in, so
that a run that is stopped leaves the best so far. All that the next round is decided from is
committed with the round before, so a resumed search goes on as it would have.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from partsum.coordinator.base import Base
from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.merge import AVERAGE, Contribution, Tensors, merge_state
from partsum.coordinator.planner.structures import (
    Newcomer,
    bits_of,
    first_rung,
    gates_of,
    next_rung,
    rung_size,
)
from partsum.coordinator.store import Store
from partsum.shared.config import RunConfig
from partsum.shared.errors import WidthError
from partsum.shared.gates import partial_gates
from partsum.shared.limits import GATES
from partsum.shared.messages import Blob
from partsum.shared.part import Part, cut_tensors
from partsum.shared.tensors import load_tensors

_BOARD = TypeAdapter(Leaderboard)


def searched_gates(config: RunConfig, base: Base) -> tuple[str, ...]:
    """The names of the gates that the config searches over.

    Raises WidthError: there are none, or too many.
    """
    asked, names = config.structures, []
    if asked.gates != "partial":
        names += [gate.name for gate in base.widths.gates]
    if asked.gates != "residual":
        names += [gate.name for gate in partial_gates(base.shape, base.widths, asked.splits)]
    if not names:
        raise WidthError(
            f'structures.gates = "{asked.gates}", but no rule finds such gates in this model; let '
            "the model say them (docs/structures.md)"
        )
    if len(names) > GATES:
        raise WidthError(
            f"the search has {len(names)} gates, and a part may name at most {GATES}; lower "
            "structures.splits, or search over fewer kinds"
        )
    return tuple(names)


def used_gates(config: RunConfig, base: Base) -> tuple[str, ...]:
    """The names of all gates that are off somewhere in the run."""
    return searched_gates(config, base) if config.parts.is_search else tuple(config.gates.off)


def rung_sizes(config: RunConfig, base: Base) -> list[int]:
    """How many structures each round trains."""
    asked, gates = config.structures, searched_gates(config, base)
    first = len(first_rung(len(gates), asked.candidates, config.seed))
    rungs = (round // asked.rung_rounds for round in range(config.parts.rounds))
    return [rung_size(first, rung, asked.eta, asked.keep) for rung in rungs]


class Search:
    """One run's search, in worker threads."""

    def __init__(self, config: RunConfig, store: Store, base: Base) -> None:
        self.config = config
        self.store = store
        self.base = base
        self.gates = searched_gates(config, base)

    def board(self) -> Leaderboard:
        """As of the last committed round."""
        stored = self.store.fact("search")
        fresh = Leaderboard(self.gates, by=self.config.structures.rank)
        return _BOARD.validate_python(stored) if stored else fresh

    def dumped(self, board: Leaderboard) -> object:
        """The leaderboard as the journal holds it."""
        return _BOARD.dump_python(board)

    def rung(self, board: Leaderboard, round: int) -> list[Newcomer]:
        """What the round trains."""
        asked, seed = self.config.structures, self.config.seed
        first = first_rung(len(self.gates), asked.candidates, seed)
        if round == 0:
            return first
        if round % asked.rung_rounds:
            return [Newcomer(bits) for bits in board.alive]
        size = rung_size(len(first), round // asked.rung_rounds, asked.eta, asked.keep)
        sampled = 2 ** len(self.gates) > len(first)
        fresh = int(size * asked.evolve + 0.5) if sampled else 0
        ranked = [one.bits for one in board.ranked() if one.bits in board.alive]
        known = [one.bits for one in board.candidates]
        return next_rung(ranked, known, size, fresh, random.Random(f"{seed}/{round}/structures"))

    def part(self, bits: str) -> Part:
        """The part that a structure is."""
        return Part(gates=gates_of(bits, self.gates))

    def bits(self, part: Part) -> str:
        """The structure that a part is."""
        return bits_of(part.off, self.gates)

    def parts(self, round: int) -> list[Part]:
        """A round's structures as parts."""
        return [self.part(one.bits) for one in self.rung(self.board(), round)]

    def team(self) -> list[Part]:
        """The structures that are trained together: the best ones at the end of the search."""
        board = self.board()
        if self.store.fact("team") is not None:
            return [self.part(bits) for bits in self.store.fact("team")]
        ranked = [one.bits for one in board.ranked() if one.last and one.bits in board.alive]
        return [self.part(bits) for bits in ranked[: self.config.cotrain.structures]]

    # -- where they start -------------------------------------------------------------------------

    def kept(self) -> Mapping[str, Any]:
        """By structure, its last update: file, blob, node."""
        return self.store.fact("parts") or {}

    def holder(self, part: Part) -> str:
        """The node that trained the structure last, or ""."""
        return str(self.kept().get(self.bits(part), {}).get("node", ""))

    def kept_start(self, part: Part) -> Blob | None:
        """The structure's own last update; None for a new one."""
        entry = self.kept().get(self.bits(part))
        return Blob(**entry["blob"]) if entry else None

    def origin(self, part: Part) -> Path | None:
        """Where that lies."""
        entry = self.kept().get(self.bits(part))
        return self.store.folder / "parts" / entry["file"] if entry else None

    def fresh_start(
        self, part: Part, parent: str, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What a new structure starts from: its parent's weights, and the base's for the rest.

        A parent that has no weights yet leaves it the base's, which are ``state``.
        """
        widths = self.base.widths
        if parent and (path := self.origin(self.part(parent))) is not None:
            share = Contribution(self.part(parent), Tensors(load_tensors(path)), 1.0)
            state = merge_state(state, [share], widths, AVERAGE)
        return cut_tensors(state, widths, part)
