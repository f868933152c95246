"""Why a worker died: the kernel's counts, from files and from a real out-of-memory kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from partsum.node.death import OomWatch, death_in_words

GREEDY = """
import multiprocessing, os, pathlib, sys, time
from partsum.node.death import OomWatch, death_in_words

def eat():
    eaten = []
    while True:
        eaten.append(b"x" * (8 << 20))

if __name__ == "__main__":
    pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
    watch = OomWatch()
    child = multiprocessing.get_context("fork").Process(target=eat)
    child.start()
    child.join()
    print(death_in_words(child.exitcode, watch.happened()))
"""


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/nodes/a", "sys/fs/cgroup/nodes/a/memory.events"),
        ("0::/", "sys/fs/cgroup/memory.events"),
        ("0::/seen/from/outside", "sys/fs/cgroup/memory.events"),
        ("4:cpu,memory:/nodes/a", "sys/fs/cgroup/memory/nodes/a/memory.oom_control"),
        ("4:memory:/seen/from/outside", "sys/fs/cgroup/memory/memory.oom_control"),
    ],
)
def test_an_own_cgroups_count_is_certain(tmp_path: Path, line: str, file: str) -> None:
    write(tmp_path, "proc/self/cgroup", f"9:pids:/\n{line}\n")
    write(tmp_path, file, "max 7\noom_kill 3\noom_kill_disable 0\n")
    watch = OomWatch(tmp_path)
    assert watch.happened() is False
    write(tmp_path, file, "max 9\noom_kill 4\noom_kill_disable 0\n")
    assert watch.happened() is True


def test_the_hosts_count_says_only_that_nothing_was_killed(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "proc/vmstat", "nr_free_pages 12\noom_kill 3\n")
    watch = OomWatch(tmp_path)
    assert watch.happened() is False
    write(tmp_path, "proc/vmstat", "nr_free_pages 12\noom_kill 4\n")
    assert watch.happened() is None, "it may have been another process"


def test_without_any_count_nothing_is_certain(tmp_path: Path) -> None:
    assert OomWatch(tmp_path).happened() is None
    write(tmp_path, "proc/self/cgroup", "4:memory:/\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.oom_control", "oom_kill soon\n")
    assert OomWatch(tmp_path).happened() is None


def test_a_death_is_put_in_words() -> None:
    assert death_in_words(3) == "exit code 3"
    assert death_in_words(-11) == "signal SIGSEGV"
    assert death_in_words(-9).endswith("most likely because the host was out of memory")
    assert death_in_words(-9, out_of_memory=True).startswith("out of memory: the kernel killed it")
    assert "by somebody" in death_in_words(-9, out_of_memory=False)


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup with 200 MB; made below this process's own, where the machine allows it."""
    lines = Path("/proc/self/cgroup").read_text().split()
    path = next((line.split(":")[2] for line in lines if ":memory:" in line), "")
    group = Path(f"/sys/fs/cgroup/memory{path}/partsum-test-{os.getpid()}")
    limit = group / "memory.limit_in_bytes"
    if not path:
        path = next((line.split(":")[2] for line in lines if line.startswith("0::")), "/")
        group = Path(f"/sys/fs/cgroup{path}/partsum-test-{os.getpid()}")
        limit = group / "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        if not limit.exists():
            pytest.skip("the memory controller is not given to cgroups below this one")
        limit.write_text(str(200 << 20))
        yield group
    finally:
        group.rmdir()


def test_a_real_kill_for_want_of_memory_is_told_for_certain(small_cgroup: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", GREEDY, str(small_cgroup)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.stdout.startswith("out of memory: the kernel killed it"), said.stderr
