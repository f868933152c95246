"""What a node remembers over its lives, and what it gives up first."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from partsum.node.state import Finished, NodeState
from partsum.shared.messages import Blob, Update


def finished(part: int, round: int) -> Finished:
    blob = Blob(f"{part:016x}{round:016x}", 10)
    update = Update(f"r{round}-p{part}", round, part, "", 32, 0.5, 1.0, 32.0, 1000, blob)
    return Finished(f"key-{round}-{part}", update)


def test_the_last_update_of_each_part_is_remembered_over_a_restart(tmp_path: Path) -> None:
    with closing(NodeState(tmp_path)) as state:
        for round in range(2):
            for part in (0, 1):
                state.finish(finished(part, round))
    with closing(NodeState(tmp_path)) as again:
        assert again.finished() == [finished(0, 1), finished(1, 1)]
        again.forget("key-1-0")
        assert again.finished() == [finished(1, 1)]


def test_parts_that_a_node_has_not_had_for_long_are_forgotten(tmp_path: Path) -> None:
    with closing(NodeState(tmp_path)) as state:
        for part in range(9):
            state.finish(finished(part, 0))
        assert [known.update.part_index for known in state.finished()] == list(range(1, 9))


def test_a_memory_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    with closing(NodeState(tmp_path)) as state:
        state.finish(finished(0, 0))
        (tmp_path / "finished.json").write_text('[{"key": 3}]')
        assert state.finished() == []
        state.finish(finished(1, 0))
        assert state.finished() == [finished(1, 0)]
