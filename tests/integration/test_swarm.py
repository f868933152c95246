"""`partsum bench swarm`: light nodes, a real coordinator, the whole protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-m", "partsum.shared", "bench", "swarm")
NODES, ROUNDS = 50, 3


def swarm(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *flags], capture_output=True, text=True, timeout=100)


def test_fifty_nodes_of_which_some_drop_out_and_return_finish_their_rounds(tmp_path: Path) -> None:
    path = tmp_path / "swarm.json"
    flags = ("--nodes", str(NODES), "--rounds", str(ROUNDS), "--part-bytes", "20000")
    done = swarm(*flags, "--drop", "0.2", "--json", str(path))
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["nodes"] == NODES
    assert found["updates"] >= NODES * ROUNDS
    assert NODES * ROUNDS * 0.05 < found["drops"] < NODES * ROUNDS * 0.4
    assert 19_000 < found["part_bytes"] < 21_000
    assert found["bytes_sent"] >= NODES * ROUNDS * found["part_bytes"]
    assert found["bytes_received"] >= NODES * ROUNDS * found["part_bytes"]
    assert len(found["round_seconds"]) == ROUNDS
    assert len(found["coordinator_cpu_seconds"]) == ROUNDS
    assert found["median_round_seconds"] > 0
    assert found["join_seconds"] > 0
    assert 50e6 < found["coordinator_peak_bytes"] < 600e6
    assert f"{found['median_round_seconds']:.2f} s" in done.stdout
    assert f"{found['updates']} updates, {found['drops']} drop-outs" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--nodes", "0"), "--nodes 0 is not between 1 and"),
        (("--rounds", "0"), "--rounds 0: at least one"),
        (("--drop", "1"), "--drop 1 is not a share"),
        (("--part-bytes", "1"), "--part-bytes 1 is not between"),
        (("--coordinator", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("--json", "/no/such/folder/x.json"), "there is no folder /no/such/folder"),
    ],
)
def test_flags_that_cannot_be_used_are_refused_in_words(flags: tuple[str, str], words: str) -> None:
    done = swarm(*flags)
    assert done.returncode == 2
    assert words in done.stderr


def test_where_no_coordinator_answers_it_says_so() -> None:
    done = swarm("--coordinator", "127.0.0.1:1")
    assert done.returncode == 3
    assert "no coordinator answers at 127.0.0.1:1" in done.stderr
