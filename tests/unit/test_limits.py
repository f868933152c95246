"""The limit on open files: raised as far as the machine allows, and told in words beyond that."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from partsum.coordinator.limits import connections

PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))
from partsum.coordinator.limits import allow_files
from partsum.shared.errors import StateError
try:
    allow_files(100)
except StateError as error:
    sys.exit(str(error))
files = [open("/dev/null") for _ in range(400)]
"""


def test_half_of_the_files_are_left_for_the_run_however_many_connect() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        assert connections() == 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.filterwarnings("default")  # the program leaves its files open
def test_a_low_limit_on_open_files_is_raised_as_far_as_a_run_needs() -> None:
    assert limited(4096) == ""


def test_a_limit_that_cannot_be_raised_far_enough_is_told_with_what_to_do() -> None:
    assert limited(256) == (
        "100 parts need up to 528 open files, but this process may have 256; raise the limit "
        "(ulimit -Hn 528, or LimitNOFILE=528 of a service), or use fewer parts\n"
    )


def limited(hard: int) -> str:
    command = [sys.executable, "-c", PROGRAM, str(hard)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr
