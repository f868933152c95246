from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

from partsum.node.blobs import BlobCache
from partsum.shared.errors import PartsumError
from partsum.shared.messages import Blob


def put(cache: BlobCache, data: bytes, moments: bytes | None = None) -> Blob:
    blob = Blob(xxhash.xxh3_128_hexdigest(data), len(data))
    cache.partial(blob).write_bytes(data)
    companion = None
    if moments is not None:
        companion = cache.folder / "moments"
        companion.write_bytes(moments)
    cache.add(cache.partial(blob), blob.digest, companion)
    return blob


def test_an_added_blob_is_found_by_its_digest_and_its_temporary_name_is_gone(
    tmp_path: Path,
) -> None:
    cache = BlobCache(tmp_path / "blobs", 1000)
    blob = put(cache, b"weights")
    path = cache.path(blob)
    assert path is not None
    assert path.read_bytes() == b"weights"
    assert not cache.partial(blob).exists()
    assert cache.path(Blob("0" * 32, 7)) is None


def test_the_least_recently_used_blob_leaves_first(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 250)
    first, second = put(cache, b"1" * 100), put(cache, b"2" * 100)
    assert cache.path(first)  # used again: the second is now the oldest
    third = put(cache, b"3" * 100)
    assert [cache.path(blob) is not None for blob in (first, second, third)] == [True, False, True]
    assert cache.size_bytes == 200


def test_what_is_held_stays_above_the_limit_and_may_leave_once_it_is_not(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 100)
    held = put(cache, b"h" * 100)
    cache.hold([held])
    put(cache, b"n" * 100)
    assert cache.path(held)
    cache.hold([])
    newest = put(cache, b"m" * 100)
    assert cache.path(held) is None
    assert cache.path(newest)


def test_a_companion_counts_and_leaves_with_its_blob(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 300)
    blob = put(cache, b"w" * 100, b"m" * 150)
    assert cache.size_bytes == 250
    companion = cache.companion(blob.digest)
    assert companion is not None
    put(cache, b"x" * 100)
    assert not companion.exists()
    assert cache.companion(blob.digest) is None


def test_a_cache_after_kill_keeps_whole_blobs_and_clears_leftovers(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000)
    blob = put(cache, b"whole", b"moments")
    half = Blob("a" * 32, 100)
    cache.partial(half).write_bytes(b"half")
    (tmp_path / "update-3").write_bytes(b"half")
    (tmp_path / f"{'b' * 32}.optimizer").write_bytes(b"of nobody")
    again = BlobCache(tmp_path, 1000)
    assert again.path(blob)
    assert again.companion(blob.digest)
    assert sorted(f.name for f in tmp_path.iterdir()) == [blob.digest, f"{blob.digest}.optimizer"]


def test_a_blob_that_was_cut_short_on_disk_is_not_given_out(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000)
    blob = put(cache, b"whole")
    (tmp_path / blob.digest).write_bytes(b"who")
    assert cache.path(blob) is None
    assert not (tmp_path / blob.digest).exists()


def test_a_blob_of_an_earlier_life_without_its_bytes_is_not_given_out(tmp_path: Path) -> None:
    blob = put(BlobCache(tmp_path, 1000), b"whole")
    (tmp_path / blob.digest).write_bytes(b"\0" * 5)  # as a power cut may leave it
    assert BlobCache(tmp_path, 1000).path(blob) is None


def test_what_is_treasured_leaves_after_all_else(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 300)
    treasured = put(cache, b"1" * 100, b"m" * 50)
    cache.treasure([treasured])
    others = [put(cache, str(k).encode() * 100) for k in range(2, 5)]
    assert cache.companion(treasured.digest)
    assert [cache.path(blob) is not None for blob in others] == [False, False, True]
    put(cache, b"5" * 250)
    assert cache.path(treasured) is None, "there was nothing else to remove"


def test_a_blob_that_the_disk_has_no_room_for_is_not_begun(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "blobs", 1 << 60)
    with pytest.raises(PartsumError, match=r"a blob of \d+ B does not fit into .*blobs, where"):
        cache.partial(Blob("0" * 32, 1 << 48))
    assert not list(cache.folder.iterdir())


def test_blobs_so_small_that_bytes_do_not_count_do_not_pile_up(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1 << 30)
    blobs = [put(cache, str(k).encode()) for k in range(300)]
    assert len(list(tmp_path.iterdir())) == 256
    assert cache.path(blobs[-1])
    assert cache.path(blobs[0]) is None
