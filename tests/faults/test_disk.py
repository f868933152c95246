"""A disk that is really full, and then is not: said in words, nothing lost, the same bytes."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster import Cluster
from tests.faults.conftest import play

pytestmark = pytest.mark.timeout(240)

Mount = Callable[[Path, int], Path]

NO_SPACE = os.strerror(errno.ENOSPC)


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts small file systems in memory, and removes them."""
    mounted: list[Path] = []

    def make(path: Path, size_bytes: int) -> Path:
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(folder: Path) -> Path:
    """Take all of a disk's room; the file that does so."""
    ballast = folder / "ballast"
    with open(ballast, "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return ballast


@pytest.mark.long  # by default a limit on the size of files does as much, in tests/e2e
def test_a_coordinator_whose_disk_is_full_goes_on_once_there_is_room(
    victim: Cluster, mount: Mount, calm_weights: bytes
) -> None:
    disk = mount(victim.folder / "runs", 16 << 20)
    play(victim)
    victim.until("coordinator", "base 1:")
    ballast = fill(disk)
    victim.until("coordinator", NO_SPACE)
    ballast.unlink()
    code = victim.wait("coordinator")
    if code == 1:  # there was no room for a base, and it gave up in words
        victim.coordinator()
        code = victim.wait("coordinator")
    assert code == 0, victim.log("coordinator")
    assert "Traceback" not in victim.log("coordinator")
    assert victim.weights() == calm_weights


def test_a_node_whose_disk_is_full_tries_again_until_there_is_room(
    victim: Cluster, mount: Mount, calm_weights: bytes
) -> None:
    disk = mount(victim.folder / "a", 16 << 20)
    play(victim)
    victim.until("coordinator", "base 1:")
    ballast = fill(disk)
    victim.until("a", "this node's disk is full, trying again")
    ballast.unlink()
    assert victim.wait("coordinator") == 0, victim.log("coordinator")
    assert "failed" not in victim.log("coordinator")
    assert "Traceback" not in victim.log("a")
    assert victim.weights() == calm_weights
