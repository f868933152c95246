"""The journal: what was committed is there after a restart, and damage is said in words."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from partsum.coordinator.folder import count_rounds, list_runs, read_facts
from partsum.coordinator.records import PlannedPart, RoundPlan, RoundResult, Span
from partsum.coordinator.store import Store
from partsum.shared.errors import StateError
from partsum.shared.messages import Blob, Update
from partsum.shared.part import Part

BLOB = Blob("a" * 32, 10)
PLAN = RoundPlan(
    round=0,
    base="base-00000.safetensors",
    parts=(
        PlannedPart(Part({"g": (0, 2)}), 1, None, BLOB, 0, 5, ""),
        PlannedPart(Part({"g": (1, 3)}), 2, BLOB, BLOB, 5, 5, "node-b"),
    ),
    progress=(0.0, 0.25),
)
RESULT = RoundResult("base-00001.safetensors", "b" * 32, 1.25, 0.5, (1,), {"merge": 0.5})


def update_of(part: int, speed: float = 5.0) -> Update:
    return Update(f"r0-p{part}", 0, part, "", 5, 0.5, 1.0, speed, 1024, BLOB)


def fill(store: Store) -> None:
    store.note(name="run", parts={"0": {"file": "x"}})
    store.open_round(PLAN, at=1.0)
    store.take_update("node-a", update_of(0), at=2.0)
    store.note_nodes({"node-a": {"sent": 3}})
    store.note_spans(Span("node-a", 0, 0, "training", 1.0, 2.0))
    store.note_event(2.5, "refused", "because", node="node-b", part=1)
    store.note_curve(10, 4.0, {"loss": 0.25})
    store.commit_round(0, RESULT, at=3.0, facts={"committed": [1, 2]})


def test_a_store_that_is_opened_again_has_everything(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        fill(store)
    with closing(Store(tmp_path)) as store:
        assert store.fact("name") == "run"
        assert store.fact("parts") == {"0": {"file": "x"}}
        assert store.fact("committed") == [1, 2]
        assert store.fact("unknown") is None
        assert store.plan(0) == PLAN
        assert store.plan(1) is None
        assert store.results() == {0: (RESULT, 1.0, 3.0)}
        assert store.updates(0)[0].update == update_of(0)
        assert store.updates(0)[0].node == "node-a"
        assert store.nodes() == {"node-a": {"sent": 3}}
        assert store.spans() == [Span("node-a", 0, 0, "training", 1.0, 2.0)]
        assert store.events() == [(2.5, "refused", "node-b", 1, "because")]
        assert store.curve() == [(10, 4.0, {"loss": 0.25})]


def test_a_part_that_comes_from_the_journal_can_be_a_key(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.open_round(PLAN, at=0.0)
        plan = store.plan(0)
    assert plan is not None
    assert hash(plan.parts[0].part) == hash(Part({"g": (0, 2)}))


def test_figures_that_are_no_numbers_come_back_from_the_journal(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.open_round(PLAN, at=0.0)
        store.take_update("node-a", update_of(0, speed=math.inf), at=1.0)
        store.take_update("node-a", update_of(1, speed=math.nan), at=1.0)
        result = RoundResult("b", "c", math.inf, math.nan, (), {})
        store.commit_round(0, result, at=1.0, facts={})
        updates = store.updates(0)
        assert updates[0].update.samples_per_second == math.inf
        assert math.isnan(updates[1].update.samples_per_second)
        assert store.results()[0][0].loss == math.inf


def test_a_journal_that_is_closed_under_a_reader_lets_it_finish(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    started = threading.Event()

    def read() -> None:
        while True:
            store.results()
            started.set()

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read) for _ in range(4)]
        assert started.wait(20)
        store.close()
        for reader in readers:
            with pytest.raises(StateError, match="closed"):
                reader.result(timeout=20)


def test_a_second_coordinator_is_refused_in_words(tmp_path: Path) -> None:
    with closing(Store(tmp_path)), pytest.raises(StateError, match="open in another coordinator"):
        Store(tmp_path)
    Store(tmp_path).close()  # free again


def test_a_corrupt_journal_is_refused_in_words_and_lets_the_folder_go(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"no journal at all, " * 999)
    for _ in range(2):
        with pytest.raises(StateError, match=r"journal.sqlite cannot be used.*--new"):
            Store(tmp_path)


def test_a_journal_that_breaks_while_it_is_open_is_an_error_in_words(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        fill(store)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database, database:
        database.execute("DROP TABLE facts")
        database.execute("CREATE TABLE facts (wrong TEXT)")
    with closing(Store(tmp_path)) as store:
        with pytest.raises(StateError, match="cannot be used"):
            store.fact("name")
        with pytest.raises(StateError, match="cannot be used"):
            store.note(name="run")


def test_a_round_is_committed_whole_or_not_at_all(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.open_round(PLAN, at=1.0)
        with pytest.raises(TypeError):
            store.commit_round(0, RESULT, at=3.0, facts={"good": 1, "bad": object()})
        assert store.results() == {}
        assert store.fact("good") is None
        store.commit_round(0, RESULT, at=3.0, facts={"good": 1})
        assert store.fact("good") == 1


def test_what_was_not_committed_is_gone_after_a_crash(tmp_path: Path) -> None:
    """A process that dies inside the transaction leaves the journal as it was before."""
    with closing(Store(tmp_path)) as store:
        store.open_round(PLAN, at=1.0)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database:
        database.execute("UPDATE rounds SET result = 'half'")  # never committed
    with closing(Store(tmp_path)) as store:
        assert store.results() == {}
        assert store.plan(0) == PLAN


def test_the_newest_word_on_an_update_counts_and_a_damaged_one_is_forgotten(
    tmp_path: Path,
) -> None:
    with closing(Store(tmp_path)) as store:
        store.take_update("node-a", update_of(1), at=1.0)
        store.take_update("node-b", update_of(1), at=2.0)
        assert store.updates(0)[1].node == "node-b"
        store.forget_update(0, 1)
        assert store.updates(0) == {}


def test_tidying_keeps_the_newest_bases_and_the_parts_that_count(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        bases = [store.base_path(f"base-{version:05d}.safetensors") for version in range(12)]
        parts = [store.part_path(round, 0) for round in range(3)]
        for path in (*bases, *parts, store.spool_path("update-r0-p0.safetensors")):
            path.touch()
        moments = store.base_path("moments-00011.safetensors")
        moments.touch()
        store.tidy(3, {parts[2]})
        assert sorted((tmp_path / "bases").iterdir()) == [*bases[-3:], moments]
        assert list((tmp_path / "parts").iterdir()) == [parts[2]]
        assert not list((tmp_path / "spool").iterdir())
        store.tidy(0, {parts[2]})
        assert len(list((tmp_path / "bases").glob("base-*"))) == 3


def test_plans_go_with_their_bases_so_that_the_backup_stays_small(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        for round in range(5):
            store.open_round(replace(PLAN, round=round), at=1.0)
            store.commit_round(round, RESULT, at=3.0, facts={})
            store.tidy(3, set())
        assert [round for round in range(5) if store.plan(round)] == [2, 3, 4]
        assert len(store.results()) == 5


def test_facts_of_old_rounds_go_too_and_what_a_run_may_go_back_to_stays(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        for round in range(5):
            store.open_round(replace(PLAN, round=round), at=1.0)
            store.commit_round(round, RESULT, at=3.0, facts={"search": ["x"] * round})
            store.tidy(3, set())
        assert [round for round in range(5) if store.round_facts(round)] == [2, 3, 4]
        store.roll_back(3, at=4.0, why="damaged")
        assert store.fact("search") == ["x", "x"]
        store.roll_back(0, at=5.0, why="damaged")
        assert store.fact("search") is None


def test_a_run_can_be_looked_at_while_and_after_a_coordinator_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "run-1"
    with closing(Store(folder)) as store:
        store.note(state="running", address="127.0.0.1:1")
        fill(store)
        assert read_facts(folder)["state"] == "running"
        assert count_rounds(folder) == 1
    (tmp_path / "latest").symlink_to(folder.name)
    found = list_runs(tmp_path)
    assert [(run.path, run.state, run.rounds, run.address) for run in found] == [
        (folder, "running", 1, "127.0.0.1:1")
    ]


def test_a_folder_without_a_journal_has_no_facts(tmp_path: Path) -> None:
    assert read_facts(tmp_path) == {}
    assert count_rounds(tmp_path) == 0
    (tmp_path / "journal.sqlite").write_text(json.dumps("not a journal"))
    assert read_facts(tmp_path) == {}
    assert count_rounds(tmp_path) == 0


def test_updates_that_have_begun_to_come_in_are_known_after_a_restart(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        begun = store.spool_path("push-r0-p1-5eed-d19e57")
        begun.write_bytes(b"half of it")
        store.spool_path("update-r0-p0.safetensors").write_bytes(b"all of it")
    with closing(Store(tmp_path)) as store:
        assert store.pushes() == {"push-r0-p1-5eed": begun}
