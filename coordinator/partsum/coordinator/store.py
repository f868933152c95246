"""A run's folder: the journal (SQLite, WAL) and the files that it speaks of.

    runs/NAME-TIME/
      config.toml            as given
      journal.sqlite         rounds, updates, events; one transaction commits a round
      bases/base-00003.safetensors
      parts/r00002-p1.safetensors        the last committed update of each part (mode block)
      clusters/              each part's sample indices
      spool/                 what is on its way: planned blobs and updates of the open round
      handoff/               DeepSpeed's checkpoints and log
      final.safetensors, summary.json, report.html

A file is named in the journal only after it has been renamed into place, so whatever dies,
whenever, the journal never speaks of a file that is not whole.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from partsum.coordinator.lock import lock_file
from partsum.coordinator.records import Received, RoundPlan, RoundResult, Span
from partsum.shared.errors import StateError
from partsum.shared.messages import Update

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, plan TEXT NOT NULL, opened REAL NOT NULL, closed REAL, result TEXT);
CREATE TABLE IF NOT EXISTS updates (
    round INTEGER, part INTEGER, node TEXT NOT NULL, body TEXT NOT NULL, received REAL NOT NULL,
    PRIMARY KEY (round, part));
CREATE TABLE IF NOT EXISTS nodes (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spans (
    node TEXT, round INTEGER, part INTEGER, state TEXT, start REAL, end REAL);
CREATE TABLE IF NOT EXISTS events (at REAL, kind TEXT, node TEXT, part INTEGER, text TEXT);
CREATE TABLE IF NOT EXISTS curve (step INTEGER PRIMARY KEY, at REAL, body TEXT NOT NULL);
"""


_PLAN = TypeAdapter(RoundPlan)
_RESULT = TypeAdapter(RoundResult)
_UPDATE = TypeAdapter(Update)


class Store:
    """A run folder, open and locked by this process.

    Raises StateError where another coordinator has it open, or where the journal cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bases", "parts", "spool", "handoff", "clusters"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(folder / "lock")
        self._guard = threading.RLock()
        # Merging runs in a worker thread; the guard keeps transactions whole.
        self._db = sqlite3.connect(folder / "journal.sqlite", check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            # NORMAL loses nothing when a process dies; commit_round pays for power cuts too.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self.close()
            raise self._broken(error) from error

    def close(self) -> None:
        """Let the folder go."""
        self._db.close()
        self._lock.close()

    def _broken(self, error: Exception) -> StateError:
        return StateError(
            f"the journal {self.folder / 'journal.sqlite'} cannot be used: {error}. Free disk "
            "space if there is none, else restore the folder from a copy, or start a new run with "
            "--new"
        )

    def _read(self, sql: str, *arguments: object) -> list[Any]:
        try:
            with self._guard:
                return self._db.execute(sql, arguments).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._guard, self._db:
                yield
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error

    # -- facts ------------------------------------------------------------------------------------

    def fact(self, key: str) -> Any:
        """A JSON value noted about the run, or None."""
        rows = self._read("SELECT value FROM facts WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else None

    def note(self, **facts: object) -> None:
        """Note JSON values about the run."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in facts.items()],
            )

    # -- rounds -----------------------------------------------------------------------------------

    def open_round(self, plan: RoundPlan, at: float) -> None:
        """The round is planned: its blobs are in the spool."""
        text = _dump(_PLAN, plan)
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO rounds (round, plan, opened) VALUES (?, ?, ?)",
                (plan.round, text, at),
            )

    def take_update(self, node: str, update: Update, at: float) -> None:
        """The update's file is in the spool, whole and checked."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?, ?)",
                (update.round, update.part_index, node, _dump(_UPDATE, update), at),
            )

    def forget_update(self, round: int, part: int) -> None:
        """The update's file turned out to be damaged."""
        with self._transaction():
            self._db.execute("DELETE FROM updates WHERE round = ? AND part = ?", (round, part))

    def commit_round(
        self, round: int, result: RoundResult, at: float, facts: Mapping[str, object]
    ) -> None:
        """The new base is on disk: from here on the round cannot be lost."""
        with self._guard:
            self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            self._db.execute(
                "UPDATE rounds SET closed = ?, result = ? WHERE round = ?",
                (at, _dump(_RESULT, result), round),
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in facts.items()],
            )
        with self._guard:
            self._db.execute("PRAGMA synchronous=NORMAL")

    def plan(self, round: int) -> RoundPlan | None:
        """A round's plan, if it was opened."""
        rows = self._read("SELECT plan FROM rounds WHERE round = ?", round)
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

    # -- what happened ----------------------------------------------------------------------------

    def note_node(self, name: str, body: Mapping[str, object]) -> None:
        """What is known of a node, for the summary."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO nodes VALUES (?, ?)", (name, json.dumps(body)))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """All nodes that ever joined."""
        rows = self._read("SELECT name, body FROM nodes ORDER BY name")
        return {name: json.loads(body) for name, body in rows}

    def note_span(self, span: Span) -> None:
        """A stretch of a node's time has ended."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?)",
                (span.node, span.round, span.part, span.state, span.start, span.end),
            )

    def spans(self) -> list[Span]:
        """All nodes' timelines."""
        return [Span(*row) for row in self._read("SELECT * FROM spans ORDER BY start")]

    def note_event(self, at: float, kind: str, text: str, node: str = "", part: int = -1) -> None:
        """Something that the report should tell."""
        with self._transaction():
            row = (at, kind, node, part, text)
            self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)

    def events(self) -> list[tuple[float, str, str, int, str]]:
        """What happened: (seconds of the run, kind, node, part or -1, text)."""
        return self._read("SELECT at, kind, node, part, text FROM events ORDER BY at")

    def note_curve(self, step: int, at: float, body: Mapping[str, object]) -> None:
        """A point of the hand-off's curve."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO curve VALUES (?, ?, ?)", (step, at, json.dumps(body))
            )

    def curve(self) -> list[tuple[int, float, dict[str, Any]]]:
        """The hand-off's curve: (step, seconds of the run, loss and scores)."""
        rows = self._read("SELECT step, at, body FROM curve ORDER BY step")
        return [(step, at, json.loads(body)) for step, at, body in rows]

    # -- files ------------------------------------------------------------------------------------

    def base_path(self, name: str) -> Path:
        """Where a base of that file name lies."""
        return self.folder / "bases" / name

    def spool_path(self, name: str) -> Path:
        """Where a file of the open round lies."""
        return self.folder / "spool" / name

    def part_path(self, round: int, part: int) -> Path:
        """Where the committed update of a part lies."""
        return self.folder / "parts" / f"r{round:05d}-p{part}.safetensors"

    def tidy(self, keep_bases: int, keep_parts: set[Path]) -> None:
        """Remove bases beyond the newest ``keep_bases``, other parts, and the whole spool."""
        if keep_bases:
            for path in sorted((self.folder / "bases").glob("base-*"))[:-keep_bases]:
                path.unlink()
        for path in (self.folder / "bases").glob(".base-*"):  # a killed merge's
            path.unlink()
        for path in (self.folder / "parts").iterdir():
            if path not in keep_parts:
                path.unlink()
        for path in (self.folder / "spool").iterdir():
            path.unlink()


def _dump(kind: TypeAdapter[Any], value: object) -> str:
    """As JSON with NaN and Infinity: pydantic's own null for these would not come back."""
    return json.dumps(kind.dump_python(value))
