"""Rounds whose updates are masked: who takes part, and what takes the masks off at the end.

What takes them off goes into the journal as soon as it is known. Until then a restarted coordinator
opens the round again with new keys, and nodes put new masks on what they have trained; from then on
it needs nobody any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from partsum.coordinator.records import RoundPlan
from partsum.coordinator.run import Run
from partsum.coordinator.secrecy import Secrecy
from partsum.coordinator.unmask import LapsedError, MaskError, masks_on_sum, shares_of
from partsum.shared.secure import Masking

log = logging.getLogger(__name__)

_SPOILED = 3  # sums that made no sense, before the run asks for a person


@dataclass(frozen=True)
class Opening:
    """A round as its session opened it."""

    holders: list[str]  # by part; "": nobody trains it in this round
    done: list[int]
    needed: int = 0
    masking: Mapping[int, Masking] = field(default_factory=dict)


class SecureRounds:
    """Opens and closes a run's rounds; lives in the daemon's loop."""

    def __init__(self, run: Run, secrecy: Secrecy) -> None:
        self._run = run
        self._secrecy = secrecy
        self._spoiled = 0

    async def open(
        self,
        plan: RoundPlan,
        holders: Sequence[str],
        done: Sequence[int],
        live: Collection[str],
    ) -> Opening:
        """Agree on masks with one node for each part. Raises LapsedError."""
        known = self._run.store.fact("unmasking")
        if known and known["round"] == plan.round and set(known["parts"]) <= set(done):
            parts = list(known["parts"])
            return Opening([""] * len(holders), parts, len(parts))
        if known:
            self._run.store.note(unmasking=None)  # of a sum that a damaged file is missing from
        for part in self._run.store.updates(plan.round):  # their masks cannot be taken off any more
            self._run.drop_update(plan.round, part)
        taken = seats(holders, live)
        roster = await self._secrecy.agree([name for name in taken if name])
        weights = [max(1, part.num_samples) for part in plan.parts]
        return Opening(
            [name if name in roster.names else "" for name in taken],
            [],
            roster.threshold,
            shares_of(weights, roster.session),
        )

    async def unmask(self, plan: RoundPlan) -> None:
        """Let the members open what takes the masks off the sum of the updates that are in.

        Once this returns it is in the journal. Raises LapsedError and MaskError.
        """
        known = self._run.store.fact("unmasking")
        if known and known["round"] == plan.round:
            return
        roster = self._secrecy.roster
        assert roster is not None, "no session is open"
        received = self._run.store.updates(plan.round)
        survivors = sorted(roster.names.index(item.node) for item in received.values())
        opened = await self._secrecy.reveal(survivors)
        masks = await asyncio.to_thread(masks_on_sum, roster, survivors, opened)
        self._run.store.note(
            unmasking={
                "round": plan.round,
                "parts": sorted(received),
                "masks": [[key.hex(), direction] for key, direction in masks],
            }
        )
        lost = sorted(set(roster.names) - {roster.names[member] for member in survivors})
        log.info("%d updates can be summed%s", len(survivors), _without(lost))

    def lapsed(self, error: LapsedError) -> None:
        """The round is to be opened again. Raises MaskError where that has not helped before."""
        log.warning("the round is opened again with new masks: %s", error)
        self._run.store.note_event(self._run.clock.now(), "lapsed", str(error))
        if not isinstance(error, MaskError):
            return
        self._spoiled += 1
        self._run.store.note(unmasking=None)
        if self._spoiled == _SPOILED:
            raise MaskError(
                f"{error}. That happened {_SPOILED} times: find out which node does not follow the "
                "protocol, by leaving out one after the other, and resume the run"
            )


def seats(holders: Sequence[str], live: Collection[str]) -> list[str]:
    """One part for each live node: who held one keeps it, the others take those left, by name."""
    taken = [name if name in live else "" for name in holders]
    taken = [name if name not in taken[:k] else "" for k, name in enumerate(taken)]
    others = iter(sorted(set(live) - set(taken)))
    return [name or next(others, "") for name in taken]


def _without(lost: Sequence[str]) -> str:
    return f", without {', '.join(lost)}" if lost else ""
