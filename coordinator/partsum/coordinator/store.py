"""A run's folder: the journal (SQLite, WAL) and the files that it speaks of.

    runs/NAME-TIME/
      config.toml            as given
      start/                 copies of the models that the base is grown from, if there are any
      journal.sqlite         rounds, updates, events; one transaction commits a round
      journal.backup         the journal as of the last committed round
      bases/base-00003.safetensors
      parts/r00002-p1.safetensors        committed updates of as many rounds (mode block)
      clusters/              each part's sample indices
      spool/                 what is on its way: planned blobs and updates of the open round
      handoff/               DeepSpeed's checkpoints and log
      final.safetensors, summary.json, report.html

A file is named in the journal only after it has been renamed into place, so whatever dies,
whenever, the journal never speaks of a file that was not whole. What a disk does to it afterwards
is found by `recovery`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from partsum.coordinator.cohort import Change
from partsum.coordinator.journal import Journal
from partsum.coordinator.lock import lock_file
from partsum.coordinator.records import Received, RoundPlan, RoundResult, Span
from partsum.shared.errors import StateError
from partsum.shared.messages import Update
from partsum.shared.spares import SPARE, Spares

_NEWEST = """
SELECT max(at) FROM (
    SELECT at FROM events UNION ALL SELECT at FROM curve UNION ALL SELECT "end" FROM spans
    UNION ALL SELECT opened FROM rounds UNION ALL SELECT closed FROM rounds
    UNION ALL SELECT received FROM updates
    UNION ALL SELECT CAST(value AS REAL) FROM facts WHERE key = 'served')
"""
_SPARES = 64  # as many as a round's largest files, or fewer
_UNFINISHED = (".", "push-")
_PLAN = TypeAdapter(RoundPlan)
_RESULT = TypeAdapter(RoundResult)
_UPDATE = TypeAdapter(Update)


class Store:
    """A run folder, open and locked by this process.

    Raises StateError where another coordinator has it open, or where the journal cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("bases", "parts", "spool", "handoff", "clusters"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"the run folder {folder} cannot be written: {error}") from error
        self._lock = lock_file(folder / "lock")
        try:
            self.journal = Journal(folder / "journal.sqlite")
        except StateError:
            self._lock.close()
            raise
        self._read, self._transaction = self.journal.read, self.journal.transaction
        self.spares = Spares(folder / "spool", _SPARES)

    def close(self) -> None:
        """Let the folder go."""
        self.journal.close()
        self._lock.close()

    # -- facts ------------------------------------------------------------------------------------

    def fact(self, key: str) -> Any:
        """A JSON value noted about the run, or None."""
        rows = self._read("SELECT value FROM facts WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else None

    def note(self, **facts: object) -> None:
        """Note JSON values about the run."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in facts.items()],
            )

    # -- rounds -----------------------------------------------------------------------------------

    def open_round(self, plan: RoundPlan, at: float) -> None:
        """The round is planned: its blobs are in the spool."""
        text = _dump(_PLAN, plan)
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO rounds (round, plan, opened) VALUES (?, ?, ?)",
                (plan.round, text, at),
            )

    def take_update(
        self, node: str, update: Update, at: float, change: Change | None = None
    ) -> None:
        """The update's file is in the spool, whole and checked; it lies so far from its start."""
        with self._transaction() as db:
            if change is not None:
                row = (update.round, update.part_index, change.norm, change.weights, change.tensor)
                db.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?, ?)", row)
            db.execute(
                "INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?, ?)",
                (update.round, update.part_index, node, _dump(_UPDATE, update), at),
            )

    def forget_update(self, round: int, part: int) -> None:
        """The update's file turned out to be damaged, or is not to be merged after all."""
        with self._transaction() as db:
            for table in ("updates", "changes"):
                db.execute(f"DELETE FROM {table} WHERE round = ? AND part = ?", (round, part))

    def commit_round(
        self, round: int, result: RoundResult, at: float, facts: Mapping[str, object]
    ) -> None:
        """The new base is on disk: from here on the round cannot be lost."""
        noted = {key: json.dumps(value) for key, value in facts.items()}
        with self._transaction(durable=True) as db:
            db.execute(
                "UPDATE rounds SET closed = ?, result = ?, facts = ? WHERE round = ?",
                (at, _dump(_RESULT, result), json.dumps(facts), round),
            )
            db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", noted.items())
            db.execute("DELETE FROM holders WHERE round <= ?", (round,))

    def roll_back(self, rounds: int, at: float, why: str) -> None:
        """Keep the first ``rounds`` rounds, and the facts as they were then; tell why."""
        gone = set().union(*(self.round_facts(r) for r in self.results() if r >= rounds))
        before = self.round_facts(rounds - 1)
        with self._transaction(durable=True) as db:
            for table in ("rounds", "updates", "changes", "holders"):
                db.execute(f"DELETE FROM {table} WHERE round >= ?", (rounds,))
            db.execute("DELETE FROM curve WHERE at > (SELECT coalesce(max(closed), 0) FROM rounds)")
            db.executemany("DELETE FROM facts WHERE key = ?", [(key,) for key in gone])
            db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in before.items()],
            )
            db.execute("INSERT INTO events VALUES (?, 'rolled_back', '', -1, ?)", (at, why))
        self.journal.back_up()

    def round_facts(self, round: int) -> dict[str, Any]:
        """The facts that were committed with a round; empty where it was not."""
        rows = self._read("SELECT facts FROM rounds WHERE round = ? AND facts IS NOT NULL", round)
        return dict(json.loads(rows[0][0])) if rows else {}

    def note_holder(self, round: int, part: int, node: str) -> None:
        """Who has a part of the open round."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO holders VALUES (?, ?, ?)", (round, part, node))

    def holders(self, round: int) -> dict[int, str]:
        """Who had each part of the open round last."""
        return dict(self._read("SELECT part, node FROM holders WHERE round = ?", round))

    def plan(self, round: int) -> RoundPlan | None:
        """A round's plan, if it was opened, and is not so old that it was tidied away."""
        rows = self._read("SELECT plan FROM rounds WHERE round = ? AND plan <> ''", round)
        return _PLAN.validate_json(rows[0][0]) if rows else None

    def results(self) -> dict[int, tuple[RoundResult, float, float]]:
        """Committed rounds: result, opened and closed seconds of the run."""
        rows = self._read(
            "SELECT round, result, opened, closed FROM rounds WHERE result IS NOT NULL "
            "ORDER BY round"
        )
        return {r: (_RESULT.validate_json(text), o, c) for r, text, o, c in rows}

    def updates(self, round: int) -> dict[int, Received]:
        """The updates that are in for a round, by part."""
        rows = self._read(
            "SELECT part, node, body, received FROM updates WHERE round = ? ORDER BY part", round
        )
        return {p: Received(n, _UPDATE.validate_json(b), at) for p, n, b, at in rows}

    def changes(self, round: int) -> dict[int, Change]:
        """How far each update of a round lies from its start, by part."""
        rows = self._read(
            "SELECT part, norm, weights, tensor FROM changes WHERE round = ? ORDER BY part", round
        )
        return {part: Change(norm, weights, tensor) for part, norm, weights, tensor in rows}

    # -- what happened ----------------------------------------------------------------------------

    def note_nodes(self, bodies: Mapping[str, Mapping[str, object]]) -> None:
        """What is known of nodes, by name, for the summary."""
        rows = [(name, json.dumps(body)) for name, body in bodies.items()]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO nodes VALUES (?, ?)", rows)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """All nodes that ever joined."""
        rows = self._read("SELECT name, body FROM nodes ORDER BY name")
        return {name: json.loads(body) for name, body in rows}

    def note_spans(self, *spans: Span) -> None:
        """Stretches of a node's time have ended."""
        rows = [(s.node, s.round, s.part, s.state, s.start, s.end) for s in spans]
        with self._transaction() as db:
            db.executemany("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?)", rows)

    def spans(self) -> list[Span]:
        """All nodes' timelines."""
        return [Span(*row) for row in self._read("SELECT * FROM spans ORDER BY start")]

    def note_event(self, at: float, kind: str, text: str, node: str = "", part: int = -1) -> None:
        """Something that the report should tell."""
        with self._transaction() as db:
            row = (at, kind, node, part, text)
            db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)

    def events(self) -> list[tuple[float, str, str, int, str]]:
        """What happened: (seconds of the run, kind, node, part or -1, text)."""
        return self._read("SELECT at, kind, node, part, text FROM events ORDER BY at")

    def seconds(self) -> float:
        """The latest second of the run that the journal speaks of."""
        return float(self._read(_NEWEST)[0][0] or 0.0)

    def note_curve(self, step: int, at: float, body: Mapping[str, object]) -> None:
        """A point of the hand-off's curve."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO curve VALUES (?, ?, ?)", (step, at, json.dumps(body))
            )

    def curve(self, after: int = -1) -> list[tuple[int, float, dict[str, Any]]]:
        """The hand-off's curve beyond a step: (step, seconds of the run, loss and scores)."""
        rows = self._read("SELECT step, at, body FROM curve WHERE step > ? ORDER BY step", after)
        return [(step, at, json.loads(body)) for step, at, body in rows]

    # -- files ------------------------------------------------------------------------------------

    def base_path(self, name: str) -> Path:
        """Where a base of that file name lies."""
        return self.folder / "bases" / name

    def spool_path(self, name: str) -> Path:
        """Where a file of the open round lies."""
        return self.folder / "spool" / name

    def pushes(self) -> dict[str, Path]:
        """Updates that have begun to come in, by name without their digest."""
        found = (self.folder / "spool").glob("push-*")
        return {path.name.rpartition("-")[0]: path for path in found}

    def part_path(self, round: int, part: int) -> Path:
        """Where the committed update of a part lies."""
        return self.folder / "parts" / f"r{round:05d}-p{part}.safetensors"

    def drop_bases(self, after: int) -> None:
        """Remove bases beyond this version, with what lies beside them: their rounds come again.

        Left there, they would be taken for the newest ones, and the real ones be tidied away.
        """
        for path in (self.folder / "bases").glob("[bdms]*-*.safetensors"):
            if int(path.stem.rpartition("-")[2]) > after:
                path.unlink()

    def tidy(self, keep_bases: int, keep_parts: set[Path], keep_plan: int = -1) -> None:
        """Remove bases beyond the newest ``keep_bases``, other parts, and the whole spool.

        Plans go with the bases, and the facts of their rounds, such as a search's leaderboard: they
        are what makes a journal large, and slow to back up. Round ``keep_plan`` keeps its own.
        """
        bases, gone = self.folder / "bases", list((self.folder / "spool").iterdir())
        if keep_bases:
            for kind in ("base-*", "moments-*", "start-*", "delta-*"):
                gone += sorted(bases.glob(kind))[:-keep_bases]
            with self._transaction() as db:
                db.execute(
                    "UPDATE rounds SET plan = '', facts = NULL WHERE plan <> '' AND "
                    "round <= (SELECT max(round) FROM rounds) - ? AND round <> ?",
                    (keep_bases, keep_plan),
                )
        gone += bases.glob(".*")  # a killed merge's
        gone += set((self.folder / "parts").iterdir()) - keep_parts
        for path in gone:
            if path.name.startswith(_UNFINISHED):  # somebody may still write to it
                path.unlink(missing_ok=True)
            elif not path.name.startswith(SPARE):
                self.spares.keep(path)


def _dump(kind: TypeAdapter[Any], value: object) -> str:
    """As JSON with NaN and Infinity: pydantic's own null for these would not come back."""
    return json.dumps(kind.dump_python(value))
