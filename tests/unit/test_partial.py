"""A file that is gathered piece by piece, and the files that are written over for it."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from partsum.shared.errors import WireError
from partsum.shared.partial import Partial, held_bytes
from partsum.shared.spares import Spares

MIB = 1 << 20


def spares_in(folder: Path, limit: int = 4) -> Spares:
    folder.mkdir(exist_ok=True)
    return Spares(folder, limit)


@given(
    data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200)), old=st.binary(max_size=300)
)
def test_pieces_become_the_whole_over_any_breaks_and_any_leftover(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int], old: bytes
) -> None:
    folder = tmp_path_factory.mktemp("partial")
    path = folder / "blob"
    if len(old) not in (len(data), len(data) + 8):  # else it might be one of ours
        path.write_bytes(old)
    ends = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    for first, last in pairwise(ends):
        assert held_bytes(path, len(data)) == first or not path.exists()
        with Partial(path, len(data), Spares(folder, 1)) as partial:
            assert partial.held == first
            partial.append(data[first:last])
    with Partial(path, len(data), Spares(folder, 1)) as partial:
        assert partial.finish() == xxhash.xxh3_128_hexdigest(data)
    assert path.read_bytes() == data
    assert [file.name for file in folder.iterdir()] == ["blob"]


def test_a_file_that_is_written_over_becomes_exactly_the_new_one(tmp_path: Path) -> None:
    spares = spares_in(tmp_path / "spool")
    for size in (3 * MIB, 2 * MIB):
        old = tmp_path / "old"
        old.write_bytes(b"x" * size)
        spares.keep(old)
        assert not old.exists()
    data = b"y" * (2 * MIB - 5)
    nearest = min((tmp_path / "spool").iterdir(), key=lambda file: file.stat().st_size)
    inode = nearest.stat().st_ino
    with Partial(tmp_path / "new", len(data), spares) as partial:
        assert partial.held == 0
        partial.append(data)
        assert partial.finish() == xxhash.xxh3_128_hexdigest(data)
    assert (tmp_path / "new").read_bytes() == data
    assert (tmp_path / "new").stat().st_ino == inode
    spares.clear()
    assert not list((tmp_path / "spool").iterdir())


def test_no_more_files_are_kept_than_the_limit_and_no_small_ones(tmp_path: Path) -> None:
    spares = spares_in(tmp_path / "spool", limit=2)
    for size in (MIB, MIB - 1, MIB, MIB):
        old = tmp_path / "old"
        old.write_bytes(bytes(size))
        spares.keep(old)
        assert not old.exists()
    assert len(list((tmp_path / "spool").iterdir())) == 2
    spares.keep(tmp_path / "never was")


def test_a_file_with_another_name_is_never_written_over(tmp_path: Path) -> None:
    spares = spares_in(tmp_path / "spool")
    (tmp_path / "update").write_bytes(bytes(MIB))
    (tmp_path / "part").hardlink_to(tmp_path / "update")
    spares.keep(tmp_path / "update")
    with Partial(tmp_path / "new", MIB, spares) as partial:
        partial.append(b"z" * MIB)
        partial.finish()
    assert (tmp_path / "part").read_bytes() == bytes(MIB)


def test_a_writer_whose_file_was_taken_away_writes_no_more(tmp_path: Path) -> None:
    spares = spares_in(tmp_path / "spool")
    with Partial(tmp_path / "one", 2 * MIB, spares) as lost:
        lost.append(b"a" * MIB)
        spares.keep(tmp_path / "one")
        with Partial(tmp_path / "two", 2 * MIB, spares) as fresh:
            fresh.append(b"b" * MIB)
            with pytest.raises(WireError, match="another stream"):
                lost.append(b"a" * MIB)
            fresh.append(b"c" * MIB)
            fresh.finish()
    assert (tmp_path / "two").read_bytes() == b"b" * MIB + b"c" * MIB


def test_a_stream_that_ends_late_cuts_no_file_that_is_another_by_now(tmp_path: Path) -> None:
    spares = spares_in(tmp_path / "spool")
    with Partial(tmp_path / "update", 2 * MIB, spares) as stalled:
        stalled.append(b"a" * 2 * MIB)
        with Partial(tmp_path / "update", 2 * MIB, spares) as again:
            again.finish()
        spares.keep(tmp_path / "update")  # it was merged
        with Partial(tmp_path / "base", 3 * MIB, spares) as base:
            base.append(b"b" * 3 * MIB)
            base.finish()
        with pytest.raises(WireError, match="another stream"):
            stalled.finish()
    assert (tmp_path / "base").read_bytes() == b"b" * 3 * MIB


def test_a_stream_that_was_cut_off_touches_no_file_that_is_opened_after_it(tmp_path: Path) -> None:
    with Partial(tmp_path / "update", 10, Spares(tmp_path, 0)) as partial:
        partial.append(b"0123456789")
    with open(tmp_path / "journal", "w+b", buffering=0) as journal:  # under the same number
        journal.write(b"what must not be lost")
        for late in (partial.finish, lambda: partial.append(b"")):
            with pytest.raises(WireError, match="another stream"):
                late()
        assert (tmp_path / "journal").read_bytes() == b"what must not be lost"
    with Partial(tmp_path / "update", 10, Spares(tmp_path, 0)) as partial:
        assert partial.finish() == xxhash.xxh3_128_hexdigest(b"0123456789")


def test_a_folder_on_another_disk_has_no_use_for_spares_but_does_without(tmp_path: Path) -> None:
    memory = Path("/dev/shm")  # what a rename cannot cross needs two real file systems
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{tmp_path} lies in {memory}, or there is none: one file system only")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        spares, old = spares_in(tmp_path / "spool"), Path(elsewhere) / "old"
        old.write_bytes(bytes(MIB))
        spares.keep(old)
        assert not old.exists()
        (tmp_path / "here").write_bytes(bytes(MIB))
        spares.keep(tmp_path / "here")
        with Partial(Path(elsewhere) / "new", MIB, spares) as partial:
            partial.append(b"z" * MIB)
            assert partial.finish() == xxhash.xxh3_128_hexdigest(b"z" * MIB)


def test_what_is_longer_or_shorter_than_announced_is_refused(tmp_path: Path) -> None:
    with Partial(tmp_path / "blob", 10, Spares(tmp_path, 0)) as partial:
        partial.append(b"12345")
        with pytest.raises(WireError, match="more than the announced 10 B"):
            partial.append(b"678901")
        with pytest.raises(WireError, match="ended after 5 of 10 B"):
            partial.finish()
