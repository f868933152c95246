"""The journal as a file: SQLite, opened, checked, backed up, and put back where it is damaged.

    journal.sqlite        with its -wal and -shm
    journal.backup        the journal as of the last committed round, whole
    journal.damaged       what was found broken, kept for whoever wants to look at it

SQLite finds a torn page, a file cut short and a foreign file by `PRAGMA quick_check`. A lost or
torn write-ahead log it does not find: the journal is then whole, but of the past. That shows by
the rounds which the backup has and the journal has not.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from partsum.shared.errors import StateError
from partsum.shared.files import sync_file, sync_folder

log = logging.getLogger(__name__)

VERSION = 2  # of the schema; 0 is what partsum 0.1 wrote

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    round INTEGER PRIMARY KEY, plan TEXT NOT NULL, opened REAL NOT NULL, closed REAL, result TEXT,
    facts TEXT);
CREATE TABLE IF NOT EXISTS updates (
    round INTEGER, part INTEGER, node TEXT NOT NULL, body TEXT NOT NULL, received REAL NOT NULL,
    PRIMARY KEY (round, part));
CREATE TABLE IF NOT EXISTS changes (
    round INTEGER, part INTEGER, norm REAL NOT NULL, weights INTEGER NOT NULL,
    tensor TEXT NOT NULL, PRIMARY KEY (round, part));
CREATE TABLE IF NOT EXISTS holders (
    round INTEGER, part INTEGER, node TEXT NOT NULL, PRIMARY KEY (round, part));
CREATE TABLE IF NOT EXISTS nodes (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spans (
    node TEXT, round INTEGER, part INTEGER, state TEXT, start REAL, end REAL);
CREATE TABLE IF NOT EXISTS events (at REAL, kind TEXT, node TEXT, part INTEGER, text TEXT);
CREATE TABLE IF NOT EXISTS curve (step INTEGER PRIMARY KEY, at REAL, body TEXT NOT NULL);
"""
_FROM_VERSION_0 = """
ALTER TABLE rounds ADD COLUMN facts TEXT;
UPDATE rounds SET facts = (SELECT json_object('parts', json(value)) FROM facts WHERE key = 'parts')
    WHERE round = (SELECT max(round) FROM rounds WHERE result IS NOT NULL);
"""
_COMMITTED = "SELECT count(*) FROM rounds WHERE result IS NOT NULL"


class Journal:
    """A run's SQLite file, open; reads and transactions from any thread, one at a time.

    ``restored`` says why the backup had to be used, and is empty where the journal was whole.

    Raises StateError, from every method, where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backup = backup_of(path)
        self._guard = threading.RLock()
        self.restored = self._restore_if_damaged()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._broken(error) from error
        try:
            self._set_up()
        except sqlite3.DatabaseError as error:
            self.close()
            raise self._broken(error) from error
        except StateError:
            self.close()
            raise

    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        # NORMAL loses nothing when a process dies; a durable transaction pays for power cuts too.
        self._db.execute("PRAGMA synchronous=NORMAL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise StateError(
                f"the journal {self.path} is of a newer partsum: it has version {version}, this "
                f"one reads up to {VERSION}. Install that one to resume, or start anew with --new"
            )
        tables = "SELECT count(*) FROM sqlite_master WHERE name = 'rounds'"
        old = version == 0 and self._db.execute(tables).fetchone()[0]
        steps = (_FROM_VERSION_0 if old else "") + _SCHEMA
        self._db.executescript(f"BEGIN; {steps} PRAGMA user_version = {VERSION}; COMMIT;")

    def close(self) -> None:
        """Let the file go; who reads it in another thread is let finish, and then told no more."""
        with self._guard:  # SQLite under a thread that still reads is a segmentation fault
            self._db.close()

    def read(self, sql: str, *arguments: object) -> list[Any]:
        """All rows of a query."""
        try:
            with self._guard:
                return self._db.execute(sql, arguments).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error

    @contextmanager
    def transaction(self, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """All of the block's changes or, where it raises, none; ``durable`` outlives power cuts."""
        try:
            with self._guard:
                self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                with self._db:
                    yield self._db
        except sqlite3.DatabaseError as error:
            raise self._broken(error) from error

    def back_up(self) -> bool:
        """Keep the journal as it is now; where that cannot be written, the one before stays."""
        fresh = self.path.with_name(f".{self.backup.name}")
        try:
            fresh.unlink(missing_ok=True)
            # A connection of its own: whoever writes meanwhile does not wait for this.
            with (
                closing(sqlite3.connect(self.path)) as source,
                closing(sqlite3.connect(fresh)) as target,
            ):
                source.backup(target)
            sync_file(fresh)
            os.replace(fresh, self.backup)
            sync_folder(self.path.parent)
        except (sqlite3.Error, OSError) as error:
            log.error("cannot back up the journal: %s; its last backup stays", error)
            return False
        return True

    # -- damage -----------------------------------------------------------------------------------

    def _restore_if_damaged(self) -> str:
        """Why the backup was put in place of the journal; empty where that was not needed."""
        if not self.backup.exists():
            return ""  # SQLite's own error says what is wrong
        try:
            damage = _damage(self.path, self.backup)
            if damage and not (worse := _damage(self.backup)):
                self._restore()
            elif damage:
                raise sqlite3.DatabaseError(f"{damage}, and neither can its backup: {worse}")
        except (sqlite3.Error, OSError) as error:
            raise self._broken(error) from error
        return damage

    def _restore(self) -> None:
        # The log first: left beside the backup, it would be replayed into it.
        for end in ("-wal", "-shm", ""):
            damaged = self.path.with_name(self.path.name + end)
            if damaged.exists():
                os.replace(damaged, self.path.with_suffix(f".damaged{end}"))
        fresh = self.path.with_name(f".{self.path.name}")
        shutil.copyfile(self.backup, fresh)
        sync_file(fresh)
        os.replace(fresh, self.path)
        sync_folder(self.path.parent)

    def _broken(self, error: Exception) -> StateError:
        return StateError(
            f"the journal {self.path} cannot be used: {error}. Free disk space if there is none, "
            "else restore the folder from a copy, or start a new run with --new"
        )


def backup_of(journal: Path) -> Path:
    """Where a journal's backup lies."""
    return journal.with_suffix(".backup")


def _damage(path: Path, backup: Path | None = None) -> str:
    """What is wrong with a journal, in words; empty where it is whole and has all of the backup."""
    if not path.exists():
        return "it is missing"
    try:
        with closing(sqlite3.connect(path)) as database:
            found = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:
        raise  # no memory, no disk, no permission: nothing is known of the file
    except sqlite3.DatabaseError as error:
        return str(error)
    if found != "ok":
        return found.replace("\n", " ")
    lost = _committed(backup) - _committed(path) if backup else 0
    return f"it has lost {lost} of its committed rounds" if lost > 0 else ""


def _committed(path: Path) -> int:
    """Committed rounds in a journal; -1 where it is an empty file, or damaged."""
    try:
        with closing(sqlite3.connect(path)) as database:
            return int(database.execute(_COMMITTED).fetchone()[0])
    except sqlite3.Error:
        return -1
