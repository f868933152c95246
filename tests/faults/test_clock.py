"""Somebody sets the clock by years while a run goes on: it decides nothing, no second is lost.

The C library's wall clock is put forward and back under the coordinator and its nodes; clocks that
cannot be set are left as they are, as they are when a machine's time is set.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import Cluster
from tests.faults.conftest import play

pytestmark = pytest.mark.timeout(240)

YEAR_SECONDS = 365 * 24 * 3600

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static int (*clock_of_libc)(clockid_t, struct timespec *);
static volatile long *jump;

__attribute__((constructor)) static void begin(void) {
    clock_of_libc = dlsym(RTLD_NEXT, "clock_gettime");
    jump = mmap(0, 8, PROT_READ, MAP_SHARED, open(getenv("CLOCK_JUMP"), O_RDONLY), 0);
}

int clock_gettime(clockid_t id, struct timespec *t) {
    if (!clock_of_libc) begin();
    int failed = clock_of_libc(id, t);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) t->tv_sec += *jump;
    return failed;
}

time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *out, void *zone) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    out->tv_sec = t.tv_sec;
    out->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"""


class WallClock:
    """The wall clock of processes that begin with ``command``."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler here to put another wall clock in place")
        library, self._jump = folder / "clock.so", folder / "jump"
        (folder / "clock.c").write_text(SOURCE)
        flags = ["-shared", "-fPIC", "-O1", str(folder / "clock.c"), "-ldl"]
        subprocess.run([compiler, "-o", str(library), *flags], check=True)
        self._jump.write_bytes(struct.pack("=q", 0))
        self.command = ["env", f"LD_PRELOAD={library}", f"CLOCK_JUMP={self._jump}"]

    def set(self, ahead_seconds: int) -> None:
        """From now on it is ahead of the machine's by so much; below zero: behind."""
        with open(self._jump, "r+b", buffering=0) as file:
            file.write(struct.pack("=q", ahead_seconds))


def test_a_wall_clock_that_is_set_changes_neither_weights_nor_durations(
    victim: Cluster, calm_weights: bytes, tmp_path: Path
) -> None:
    clock = WallClock(tmp_path)
    victim.places = dict.fromkeys(("coordinator", "a", "b"), clock.command)
    begun = time.monotonic()
    play(victim)
    victim.until("coordinator", "base 1:")
    clock.set(YEAR_SECONDS)
    victim.until("coordinator", "base 2:")
    victim.kill("coordinator")
    clock.set(-YEAR_SECONDS)
    victim.coordinator()
    assert victim.wait("coordinator") == 0, victim.log("coordinator")
    passed = time.monotonic() - begun
    assert victim.weights() == calm_weights
    summary: Any = victim.summary()
    ends = [entry["closed_seconds"] for entry in summary["rounds"]]
    assert 0 < summary["wall_seconds"] < passed
    assert ends == sorted(ends)
    assert summary["ended_at"] < summary["started_at"]  # which is what the clock said
    assert not [i for i in summary["incidents"] if "heartbeats" in i["text"]]
