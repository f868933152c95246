"""The journal as the live page reads it: from any thread, a little at a time, never twice."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from partsum.coordinator.cost import part_size
from partsum.coordinator.live.history import HistoryThen, PartThen, RoundThen, TimelineThen
from partsum.coordinator.phases import handoff_rounds
from partsum.coordinator.ranges import part_picture, visible_ranges
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.run import Run
from partsum.coordinator.store import Store
from partsum.coordinator.summary import HandoffPoint, IncidentSummary, StageSeconds
from partsum.coordinator.summary_structures import SearchSummary, search_summary
from partsum.shared.part import WHOLE

_Row = TypeVar("_Row")

_FRESH_SECONDS = 1.0
_POINTS = 1000  # of a curve: more than a screen has columns
_SPANS, _INCIDENTS, _GROUPS, _PARTS, _STRUCTURES = 2000, 200, 24, 64, 200
_STAGES = frozenset(StageSeconds.model_fields)

_STATE = """
SELECT (SELECT count(*) FROM rounds WHERE result IS NOT NULL), (SELECT count(*) FROM rounds),
    (SELECT coalesce(max(rowid), 0) FROM spans), (SELECT coalesce(max(rowid), 0) FROM events),
    (SELECT coalesce(max(step), -1) FROM curve),
    (SELECT count(*) FROM facts WHERE key IN ('handoff_began', 'handoff'))
"""
_ROUNDS = """
SELECT round, result, opened, closed FROM rounds WHERE result IS NOT NULL AND round >= ?
ORDER BY round
"""
_LOSSES = "SELECT round, json_extract(body, '$.loss') FROM updates WHERE round >= ?"
_NEWEST_PLAN = "SELECT max(round) FROM rounds WHERE plan <> ''"


class Chronicle:
    """One run's past; safe in any thread."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._read = run.store.journal.read
        self._guard = threading.Lock()
        self._rounds: list[RoundThen] = []
        self._parts: tuple[int, tuple[PartThen, ...]] = (-1, ())
        self._told: HistoryThen | None = None
        self._told_at = 0.0
        widths = run.base.widths
        self._groups = {group.name: group.units for group in islice(widths.groups, _GROUPS)}
        self._left_out = len(widths.groups) - len(self._groups)
        self._parameters = part_size(run.base.shape, widths, WHOLE).parameters

    def state(self) -> str:
        """Another text whenever there is something new. Raises StateError."""
        return ".".join(map(str, self._read(_STATE)[0]))

    def open_round(self, round: int) -> tuple[dict[int, str], dict[int, str]]:
        """Who has each part of a round, and who has delivered it. Raises StateError."""
        done = self._read("SELECT part, node FROM updates WHERE round = ?", round)
        return self._run.store.holders(round), dict(done)

    def history(self, ended: bool) -> HistoryThen:
        """The run so far, as of a second ago at the most. Raises StateError."""
        with self._guard:
            told, now = self._told, time.monotonic()
            due = ended or now - self._told_at > _FRESH_SECONDS
            if told is None or (due and (told.history != self.state() or _lacks(told, ended))):
                told = self._told = self._tell(ended)
                self._told_at = now
            return told

    def _tell(self, ended: bool) -> HistoryThen:
        run, state = self._run, self.state()
        self._read_rounds()
        return HistoryThen(
            history=state,
            run=run.folder.name,
            task=run.config.task.name,
            seed=run.config.seed,
            planner=run.config.parts.planner,
            started_at=run.clock.dates()[0],
            base_parameters=self._parameters,
            groups=self._groups,
            handoff_planned=run.config.handoff.enabled,
            rounds_before_handoff=handoff_rounds(run.config).start,
            opened_seconds=self._read("SELECT max(opened) FROM rounds")[0][0],
            groups_left_out=self._left_out,
            parts=self._newest_parts(),
            rounds=tuple(thinned(self._rounds, _POINTS)),
            handoff=tuple(thinned(list(self._curve()), _POINTS)),
            handoff_began_seconds=run.store.fact("handoff_began"),
            timeline=tuple(self._timeline()),
            incidents=tuple(self._incidents()),
            search=self._search(),
            report="report.html" if ended and (run.folder / "report.html").exists() else None,
        )

    def _read_rounds(self) -> None:
        """Committed rounds stay as they are, so that only new ones are read."""
        known = self._rounds[-1].round if self._rounds else 0
        self._rounds += committed_rounds(self._run.store, known)

    def _newest_parts(self) -> tuple[PartThen, ...]:
        newest = self._read(_NEWEST_PLAN)[0][0]
        if newest is not None and newest != self._parts[0]:
            plan = self._run.store.plan(newest)
            self._parts = newest, self._pictures(plan) if plan else ()
        return self._parts[1]

    def _pictures(self, plan: RoundPlan) -> tuple[PartThen, ...]:
        return tuple(
            PartThen(
                part=number,
                units={
                    name: tuple(visible_ranges(ranges, self._groups[name]))
                    for name, ranges in part_picture(planned.part).items()
                    if name in self._groups
                },
                gates_off=planned.part.off,
            )
            for number, planned in enumerate(plan.parts[:_PARTS])
        )

    def _curve(self) -> Iterable[HandoffPoint]:
        for step, at, body in self._run.store.curve():
            yield HandoffPoint(
                step=step,
                seconds=at,
                loss=body.get("loss"),
                validation_loss=body.get("validation_loss"),
                accuracy=body.get("accuracy"),
            )

    def _timeline(self) -> list[TimelineThen]:
        rows = self._read("SELECT * FROM spans ORDER BY rowid DESC LIMIT ?", _SPANS)
        return [
            TimelineThen(
                node=node,
                round=round + 1,
                part=part,
                state=state,
                start_seconds=start,
                end_seconds=end,
            )
            for node, round, part, state, start, end in reversed(rows)
        ]

    def _incidents(self) -> list[IncidentSummary]:
        columns = "at, kind, node, part, text"
        rows = self._read(f"SELECT {columns} FROM events ORDER BY rowid DESC LIMIT ?", _INCIDENTS)
        return [
            IncidentSummary(seconds=at, kind=kind, node=node, part=part, text=text)
            for at, kind, node, part, text in reversed(rows)
        ]

    def _search(self) -> SearchSummary | None:
        board = self._run.board
        if board is None:
            return None
        search = search_summary(board)
        return search.model_copy(update={"structures": search.structures[:_STRUCTURES]})


def _lacks(told: HistoryThen, ended: bool) -> bool:
    return ended and told.report is None


def committed_rounds(store: Store, known: int) -> list[RoundThen]:
    """Rounds beyond the first ``known``, in order. Raises StateError."""
    losses: defaultdict[int, list[float]] = defaultdict(list)
    rows = store.journal.read(_ROUNDS, known)
    for round, loss in store.journal.read(_LOSSES, known) if rows else ():
        losses[round].append(float("nan") if loss is None else float(loss))
    return [_round(row, losses[row[0]]) for row in rows]


def _round(row: Sequence[Any], losses: list[float]) -> RoundThen:
    round, text, opened, closed = row
    result = json.loads(text)
    return RoundThen(
        round=round + 1,
        opened_seconds=opened,
        closed_seconds=closed,
        loss=result["loss"],
        accuracy=result["accuracy"],
        part_loss=sum(losses) / len(losses) if losses else None,
        updates=len(losses),
        missing_parts=tuple(result["missing"]),
        stage_seconds=StageSeconds(
            **{name: took for name, took in result["stage_seconds"].items() if name in _STAGES}
        ),
    )


def thinned(rows: Sequence[_Row], most: int) -> list[_Row]:
    """At most about ``most`` rows, evenly far from each other; the last one is among them."""
    step = -(-len(rows) // most) if rows else 1
    return list(rows[(len(rows) - 1) % step :: step])
