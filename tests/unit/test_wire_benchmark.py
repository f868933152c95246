"""The benchmark of wire types: every row is a run that partsum takes, and its figures add up."""

from __future__ import annotations

import pytest
from benchmarks.encoded.cluster import Outcome, play
from benchmarks.harness import to_toml
from benchmarks.wire import ROWS, Row, config, figures, table

from partsum.shared.config import parse_config


@pytest.mark.parametrize("planner", ROWS)
def test_every_row_is_a_config(planner: str) -> None:
    for row in ROWS[planner]:
        made = parse_config(to_toml(config(planner, row, 0, 10, (64, 64))))
        assert (made.wire.up, made.wire.down) == (row.up, row.down)


def test_a_run_counts_what_travels() -> None:
    def played(row: Row) -> Outcome:
        values = config("full", row, 0, 2, (64, 64))
        digits = {"name": "partsum.shared.tasks:digits", "options": {"widths": [64, 64]}}
        return play(to_toml({**values, "task": digits}), row.feedback)

    whole, short = played(Row("float32")), played(Row("int8", "int8"))
    assert abs(whole.sent_bytes - whole.fetched_bytes) < 1000, "but for headers"
    assert short.sent_bytes < 0.4 * whole.sent_bytes
    assert short.fetched_bytes < 0.7 * whole.fetched_bytes, "the first start is whole"
    assert abs(short.loss - whole.loss) < 0.05
    found = figures("full", {"float32 / float32": [whole]})
    assert found["full/float32 / float32/sent_bytes"] == whole.sent_bytes
    assert table("full", {"a": [whole], "b": [short]}).row_count == 2
