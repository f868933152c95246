"""A folder that was damaged while nobody had it: found, said, and the same bytes in the end."""

from __future__ import annotations

import asyncio
import functools
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from partsum.coordinator.clock import RunClock
from partsum.coordinator.cohort import Change
from partsum.coordinator.cutter import blob_of
from partsum.coordinator.folder import new_run, open_run, unfinished_run
from partsum.coordinator.records import PlannedPart, RoundPlan
from partsum.coordinator.run import Run
from partsum.coordinator.store import Store
from partsum.shared.config import RunConfig, parse_config
from partsum.shared.errors import StateError
from partsum.shared.messages import Update
from partsum.shared.part import cut_module, fresh_module
from partsum.shared.tensors import load_tensors, save_tensors

CONFIG = """
name = "damage"
folder = "{folder}"
task = {{ name = "partsum.shared.tasks:digits", options = {{ widths = [12, 12] }} }}
parts = {{ count = 2, rounds = 4{parts} }}
rounds = {{ quorum = 0.5 }}
handoff = {{ enabled = false }}
"""
MODES = {
    "block": "",
    "residual": ', mode = "residual"',
    "relevance": ', planner = "relevance", mode = "residual" }\n'
    "relevance = { epochs = 0.3, every = 2",
    "full": ', planner = "full"',
    "gradients": ', planner = "full", aggregate = "gradients", gradient_batches = 1',
    "nesterov": ', planner = "full" }\nouter = { optimizer = "nesterov"',
}


@contextmanager
def opened(folder: Path, mode: str = "block") -> Iterator[Run]:
    """The run of a folder, ready for its next round; a new one where there is none."""
    config, store = opened_store(folder, mode)
    with closing(store):
        run = Run(config, store, RunClock(1e9, store.seconds()))
        run.prepare()
        yield run


def opened_store(folder: Path, mode: str) -> tuple[RunConfig, Store]:
    text = CONFIG.format(folder=folder, parts=MODES[mode])
    config = parse_config(text)
    if found := unfinished_run(config):
        return open_run(found)
    return config, new_run(config, text, 1e9)


def deliver(run: Run, plan: RoundPlan, k: int) -> None:
    """What a node might send: where it starts, with noise of (round, part)."""
    planned = plan.parts[k]
    generator = torch.Generator().manual_seed(1000 * plan.round + k)
    state = {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator) * (tensor.dim() > 1)
        for name, tensor in start_of(run, plan, planned).items()
    }
    path = run.store.spool_path("pushed")
    save_tensors(path, state, durable=False)
    start = planned.start.digest if planned.start else ""
    samples = max(1, planned.num_samples)
    blob = blob_of(path)
    update = Update(f"r{plan.round}-p{k}", plan.round, k, start, samples, 0.5, 1.0, 1.0, 1, blob)
    change = Change(norm=1.0, weights=len(state), tensor="")
    run.take_update(f"node-{k}", update, path, run.clock.now(), change)


def start_of(run: Run, plan: RoundPlan, planned: PlannedPart) -> dict[str, torch.Tensor]:
    if planned.start is not None:
        path = run.workshop.cutter.blob_paths(plan)[planned.start.digest]
        assert blob_of(path) == planned.start
        return load_tensors(path)
    narrow = cut_module(run.task.model(), run.base.widths, planned.part)
    return dict(fresh_module(narrow, planned.seed).state_dict())


def play(run: Run, rounds: int, missing: tuple[int, ...] = ()) -> None:
    """Rounds with an update of every part that is not missing, until so many are committed."""

    async def on() -> None:
        for round in range(run.next_round, rounds):
            plan, _, done = await run.open_round(round, {})
            for k in {0, 1} - set(done) - set(missing):
                deliver(run, plan, k)
            await run.close_round(plan, missing)

    asyncio.run(on())


def newest_base(run: Run) -> bytes:
    return max((run.folder / "bases").glob("base-*")).read_bytes()


@pytest.fixture(scope="module")
def three_rounds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, bytes]]:
    """For a mode: a folder with three committed rounds, and the base of an undisturbed fourth."""

    @functools.cache
    def make(mode: str) -> tuple[Path, bytes]:
        parent = tmp_path_factory.mktemp("runs")
        with opened(parent, mode) as run:
            play(run, 3)
            folder = run.folder
        shutil.copytree(folder, parent / "calm")
        with closing_run(parent / "calm") as run:
            play(run, 4)
            return folder, newest_base(run)

    return make


@contextmanager
def closing_run(folder: Path) -> Iterator[Run]:
    """A given run folder, opened again."""
    config, store = open_run(folder)
    with closing(store):
        run = Run(config, store, RunClock(1e9, store.seconds()))
        run.prepare()
        yield run


@pytest.fixture
def copied(
    three_rounds: Callable[[str], tuple[Path, bytes]], tmp_path: Path
) -> Callable[[str], tuple[Path, bytes]]:
    def copy(mode: str) -> tuple[Path, bytes]:
        source, calm = three_rounds(mode)
        return shutil.copytree(source, tmp_path / "damage"), calm

    return copy


Copied = Callable[[str], tuple[Path, bytes]]


def spoil(path: Path) -> None:
    """Flip a bit in the middle, as a dying disk might."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def kinds(run: Run) -> list[str]:
    return [kind for _, kind, *_ in run.store.events()]


@pytest.mark.parametrize("damage", [spoil, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_base_of_mode_block_is_merged_again_to_the_byte(
    copied: Copied, damage: Callable[[Path], None]
) -> None:
    folder, calm = copied("block")
    base = folder / "bases" / "base-00003.safetensors"
    before = base.read_bytes()
    damage(base)
    with closing_run(folder) as run:
        assert run.next_round == 3
        assert base.read_bytes() == before
        assert kinds(run) == ["rebuilt"]
        play(run, 4)
        assert newest_base(run) == calm


def test_a_base_with_a_missing_part_is_merged_again_to_the_byte(tmp_path: Path) -> None:
    for rounds, missing in ((1, (1,)), (2, ()), (3, (0,))):  # a stand-in; all; a last update
        with opened(tmp_path) as run:
            play(run, rounds, missing)
            folder, before = run.folder, newest_base(run)
        spoil(max((folder / "bases").glob("base-*")))
        with closing_run(folder) as run:
            assert newest_base(run) == before
            assert run.next_round == rounds


@pytest.mark.parametrize("mode", ["residual", "relevance", "full", "gradients"])
def test_where_parts_overlap_the_run_goes_back_to_the_last_whole_base(
    copied: Copied, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, calm = copied(mode)
    spoil(folder / "bases" / "base-00003.safetensors")
    with closing_run(folder) as run:
        assert run.next_round == 2
        assert kinds(run) == ["rolled_back"]
        assert "went back from base 3 to base 2: " in caplog.text
        play(run, 4)
        assert newest_base(run) == calm


def test_a_damaged_part_sends_mode_block_back_to_the_round_before(copied: Copied) -> None:
    folder, calm = copied("block")
    spoil(folder / "parts" / "r00002-p1.safetensors")
    with closing_run(folder) as run:
        assert run.next_round == 2
        assert run.store.fact("parts")["1"]["file"] == "r00001-p1.safetensors"
        play(run, 4)
        assert newest_base(run) == calm


@pytest.mark.parametrize("mode", ["gradients", "nesterov"])
def test_damaged_moments_send_the_run_back(copied: Copied, mode: str) -> None:
    folder, calm = copied(mode)
    spoil(folder / "bases" / "moments-00003.safetensors")
    with closing_run(folder) as run:
        assert run.next_round == 2
        play(run, 4)
        assert newest_base(run) == calm


@pytest.mark.parametrize("mode", MODES)
def test_where_nothing_is_whole_the_run_begins_again(copied: Copied, mode: str) -> None:
    folder, calm = copied(mode)
    for path in [*folder.glob("bases/*"), *folder.glob("parts/*")]:
        spoil(path)
    with closing_run(folder) as run:
        assert run.next_round == 0
        play(run, 4)
        assert newest_base(run) == calm


def test_a_run_that_began_again_keeps_its_new_bases_and_not_the_old_ones(copied: Copied) -> None:
    folder, calm = copied("full")
    with closing_run(folder) as run:
        play(run, 4)  # its first bases are tidied away
    for path in folder.glob("bases/*"):
        spoil(path)
    with closing_run(folder) as run:
        for rounds in (1, 2, 3, 4):
            play(run, rounds)
            assert max(folder.glob("bases/base-*")).name == f"base-{rounds:05d}.safetensors"
        assert newest_base(run) == calm


def test_a_damaged_first_base_is_made_again(tmp_path: Path) -> None:
    with opened(tmp_path, "full") as run:
        folder, before = run.folder, newest_base(run)
    spoil(folder / "bases" / "base-00000.safetensors")
    with closing_run(folder) as run:
        assert newest_base(run) == before
        assert kinds(run) == ["rebuilt"]
        run.store.note(first_base="0" * 32)  # as if another torch had made it
    with pytest.raises(StateError, match="comes out different"), closing_run(folder):
        pass


def test_damaged_clusters_are_made_again_from_the_seed(copied: Copied) -> None:
    folder, calm = copied("block")
    spoil(folder / "clusters" / "c0.i64")
    (folder / "clusters" / "c1.i64").unlink()
    with closing_run(folder) as run:
        assert kinds(run) == ["damaged"]
        play(run, 4)
        assert newest_base(run) == calm
        run.store.note(clusters=["0" * 32, "1" * 32])
    with pytest.raises(StateError, match=r"its clusters .* comes out different"):
        closing_run(folder).__enter__()


def test_a_damaged_update_in_the_spool_is_asked_for_again(copied: Copied) -> None:
    folder, calm = copied("residual")
    with closing_run(folder) as run:
        plan, _, _ = asyncio.run(run.open_round(3, {}))
        for k in (0, 1):
            deliver(run, plan, k)
    spoil(folder / "spool" / "update-r3-p0.safetensors")
    spoil(folder / "spool" / "start-r3-p1.safetensors")
    with closing_run(folder) as run:
        plan, _, done = asyncio.run(run.open_round(3, {}))
        assert done == [1]
        assert kinds(run) == ["damaged"]
        play(run, 4)
        assert newest_base(run) == calm


# -- the journal --------------------------------------------------------------------------------


def zero_a_page(journal: Path) -> None:
    data = bytearray(journal.read_bytes())
    data[4096 : 2 * 4096] = bytes(4096)
    journal.write_bytes(data)


def cut_in_half(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes()[: journal.stat().st_size // 2])


def overwrite(journal: Path) -> None:
    journal.write_bytes(b"nothing that SQLite wrote. " * 999)


def empty(journal: Path) -> None:
    journal.write_bytes(b"")


@pytest.mark.parametrize("damage", [zero_a_page, cut_in_half, overwrite, empty, Path.unlink])
def test_a_damaged_journal_gives_way_to_its_backup(
    copied: Copied, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder, calm = copied("block")
    damage(folder / "journal.sqlite")
    with closing_run(folder) as run:
        assert run.next_round == 3
        assert kinds(run) == ["journal_restored"]
        assert "the journal was damaged" in caplog.text
        play(run, 4)
        assert newest_base(run) == calm
    if damage is not Path.unlink:
        assert (folder / "journal.damaged").exists()


def test_a_lost_write_ahead_log_shows_by_the_rounds_that_are_missing(tmp_path: Path) -> None:
    """SQLite itself finds nothing wrong: the journal is whole, but of the past."""
    with opened(tmp_path) as run:
        play(run, 1)
        folder = run.folder
    with closing_run(folder) as run:
        play(run, 3)
        for path in (folder / "journal.sqlite", folder / "journal.backup"):
            shutil.copy(path, tmp_path)  # without its log, and before it is folded in
    for path in folder.glob("journal.sqlite*"):
        path.unlink()
    shutil.copy(tmp_path / "journal.sqlite", folder)
    with closing_run(folder) as run:
        assert run.next_round == 3
        assert "it has lost 2 of its committed rounds" in run.store.events()[-1][4]


def test_a_damaged_run_is_still_found_by_its_config(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        play(run, 1)
        folder = run.folder
    overwrite(folder / "journal.sqlite")
    with opened(tmp_path) as run:
        assert run.folder == folder
        assert run.next_round == 1


def test_a_journal_whose_backup_is_damaged_too_is_refused_in_words(copied: Copied) -> None:
    folder, _ = copied("block")
    overwrite(folder / "journal.sqlite")
    cut_in_half(folder / "journal.backup")
    for _ in range(2):
        with pytest.raises(StateError, match=r"neither can its backup.*--new"):
            Store(folder)


def test_a_damaged_backup_is_no_matter_while_the_journal_is_whole(copied: Copied) -> None:
    folder, calm = copied("block")
    overwrite(folder / "journal.backup")
    with closing_run(folder) as run:
        play(run, 4)
        assert newest_base(run) == calm
        assert kinds(run) == []
    overwrite(folder / "journal.sqlite")
    with closing_run(folder) as run:  # the commit has made another backup
        assert run.next_round == 4


def test_a_journal_of_the_version_before_is_brought_up_to_date(copied: Copied) -> None:
    folder, calm = copied("block")
    (folder / "journal.backup").unlink()
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database, database:
        database.execute("ALTER TABLE rounds DROP COLUMN facts")
        database.execute("DROP TABLE holders")
        database.execute("PRAGMA user_version = 0")
    with closing_run(folder) as run:
        assert set(run.workshop.files_of(2)) == set(run.workshop.kept_paths(1))
        assert len(run.workshop.files_of(2)) == 2
        play(run, 4)
        assert newest_base(run) == calm


def test_a_journal_of_a_newer_partsum_is_refused_in_words(copied: Copied) -> None:
    folder, _ = copied("block")
    with closing(sqlite3.connect(folder / "journal.sqlite")) as database, database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StateError, match="of a newer partsum: it has version 99"):
        Store(folder)
